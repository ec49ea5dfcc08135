/** Dialogs: the browser's own, which keeps the focus inside and closes with Escape. */
import { html, render, useEffect, useId, useRef, useSignal } from "../lib/ui.js";

/** @typedef {import("../vendor/preact.js").Child} Child */

/**
 * @param {{title: string, onClose: () => void, children?: Child, wide?: boolean}} props
 */
export function Dialog({ title, onClose, children, wide }) {
  const at = useRef(/** @type {HTMLDialogElement|null} */ (null));
  const id = useId();
  useEffect(() => {
    const before = document.activeElement;
    at.current?.showModal();
    return () => {
      if (before instanceof HTMLElement && before.isConnected) before.focus();
    };
  }, []);
  const outside = (/** @type {MouseEvent} */ event) => {
    if (event.target === at.current) onClose();
  };
  return html`<dialog ref=${at} class=${wide ? "wide" : ""} aria-labelledby=${id} onClose=${onClose} onMouseDown=${outside}>
    <div class="sheet">
      <header><h2 id=${id}>${title}</h2><button class="quiet" aria-label="Close" onClick=${onClose}>✕</button></header>
      ${children}
    </div>
  </dialog>`;
}

/**
 * Shows a dialog above the page until `close` is called: open((close) => html`<${Dialog} onClose=${close} …/>`).
 * @param {(close: () => void) => Child} make
 */
export function open(make) {
  const place = document.createElement("div");
  document.body.append(place);
  const close = () => {
    render(null, place);
    place.remove();
  };
  render(make(close), place);
}

/**
 * A form in a dialog. `save` may return a promise: while it is pending the button waits, and its error is shown.
 * `typed` is a text that has to be typed before the button works.
 * @param {{title: string, action: string, danger?: boolean, typed?: string, children?: Child, onClose: () => void,
 *   save: (form: FormData) => (void|Promise<unknown>)}} props
 */
export function FormDialog({ title, action, danger, typed, children, onClose, save }) {
  const text = useSignal("");
  const busy = useSignal(false);
  const error = useSignal("");
  const submit = async (/** @type {SubmitEvent} */ event) => {
    event.preventDefault();
    const form = new FormData(/** @type {HTMLFormElement} */ (event.currentTarget));
    busy.value = true;
    error.value = "";
    try {
      await save(form);
      onClose();
    } catch (failed) {
      error.value = /** @type {Error} */ (failed).message;
      busy.value = false;
    }
  };
  return html`<${Dialog} title=${title} onClose=${onClose}>
    <form onSubmit=${submit}>
      ${children}
      ${typed !== undefined && html`<label>Type <b class="name">${typed}</b> to confirm
        <input name="confirmation" autocomplete="off" spellcheck=${false} value=${text}
          onInput=${(/** @type {any} */ event) => { text.value = event.currentTarget.value; }} /></label>`}
      ${error.value && html`<p role="alert" class="error">${error}</p>`}
      <footer>
        <button type="button" onClick=${onClose}>Cancel</button>
        <button class=${danger ? "danger" : "primary"} disabled=${busy.value || (typed !== undefined && text.value !== typed)}>${action}</button>
      </footer>
    </form>
  <//>`;
}
