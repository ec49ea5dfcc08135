/** What a screen shows when it has nothing else: it loads, there is nothing, or something failed. */
import { html, useEffect, useSignal } from "../lib/ui.js";

/** @typedef {import("../vendor/preact.js").Child} Child */

/** After a moment, so that what comes at once does not flash. @param {{what?: string}} props */
export function Loading({ what = "Loading" }) {
  const slow = useSignal(false);
  useEffect(() => {
    const timer = setTimeout(() => { slow.value = true; }, 150);
    return () => clearTimeout(timer);
  }, []);
  return html`<div class="state" aria-busy="true">${slow.value && html`<p class="dim">${what}…</p>`}</div>`;
}

/**
 * @param {{title: string, children?: Child, command?: string}} props  `command`: what to run to change that
 */
export function Empty({ title, children, command }) {
  return html`<div class="state">
    <h2>${title}</h2>
    ${children && html`<p>${children}</p>`}
    ${command && html`<${Command} text=${command} />`}
  </div>`;
}

/** @param {{error: Error, retry?: () => void, command?: string}} props */
export function Failure({ error, retry, command }) {
  const { status = 0, code = "" } = /** @type {any} */ (error);
  if (code === "offline") return html`<${Offline} retry=${retry} />`;
  return html`<div class="state" role="alert">
    <h2>${status === 404 ? "Not found" : status === 403 ? "Not allowed" : "That did not work"}</h2>
    <p class="message">${error.message}</p>
    ${command && html`<${Command} text=${command} />`}
    ${retry && html`<p><button onClick=${retry}>Try again</button></p>`}
  </div>`;
}

/** What is wrong with a query, and what would be right. @param {{error: import("../lib/api.js").ApiError, id?: string}} props */
export function WrongQuery({ error: { message, hint }, id }) {
  return html`<pre class="wrong" role="alert" id=${id}>${message}${hint && !message.includes(hint) && `\n${hint}`}</pre>`;
}

/** @param {{retry?: () => void}} props */
export function Offline({ retry }) {
  return html`<div class="state" role="alert">
    <h2>The server does not answer</h2>
    <p>Nothing that was recorded is lost by that. If it was started here, start it again:</p>
    <${Command} text="ml-dash ui" />
    ${retry && html`<p><button onClick=${retry}>Try again</button></p>`}
  </div>`;
}

/** A command to copy. @param {{text: string}} props */
export function Command({ text }) {
  const copied = useSignal(false);
  const copy = async () => {
    await navigator.clipboard.writeText(text);
    copied.value = true;
  };
  return html`<p class="command"><code>${text}</code>
    ${navigator.clipboard && html`<button class="quiet" onClick=${copy}>${copied.value ? "Copied" : "Copy"}</button>`}</p>`;
}
