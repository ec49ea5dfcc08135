/** Logging in: with a token of the server's owner, or by a name where the server is set up for development. */
import { html, useEffect, useSignal } from "../lib/ui.js";
import { get, login } from "../lib/api.js";
import { Command } from "../parts/states.js";

/** @param {import("../types").ScreenProps} props */
export default function Login({ params }) {
  const ways = useSignal({ token: true, name: false, mode: "server" });
  const error = useSignal(params.key ? "This link was used before, or belongs to another server." : "");
  const busy = useSignal(false);
  useEffect(() => {
    get("/login/ways").then((found) => { ways.value = found; }, (failed) => { error.value = failed.message; });
  }, []);
  const submit = async (/** @type {SubmitEvent} */ event) => {
    event.preventDefault();
    const form = new FormData(/** @type {HTMLFormElement} */ (event.currentTarget));
    busy.value = true;
    try {
      await login(form);
      location.assign(target(params.next));
    } catch (failed) {
      error.value = /** @type {Error} */ (failed).message;
      busy.value = false;
    }
  };
  const { token, name, mode } = ways.value;
  return html`<div class="login">
    <h1>${token ? "Log in to ml-dash" : "ml-dash"}</h1>
    ${error.value && html`<p role="alert" class="error">${error}</p>`}
    ${token && html`<form onSubmit=${submit}>
      <label>Token <input name="token" type="password" autocomplete="current-password" required autofocus /></label>
      <button class="primary" disabled=${busy}>Log in</button>
    </form>
    <p class="dim">The server's owner makes tokens:</p>
    <p><code>ml-dash server token create USER</code></p>`}
    ${name && html`<form onSubmit=${submit}>
      <label>Or, on this machine, any user's name <input name="user" autocomplete="username" required /></label>
      <button disabled=${busy}>Look</button>
    </form>`}
    ${mode === "local" && html`<p>This page shows the runs of one machine to the browser that followed its link. The link works
      once; for another, start it again there:</p><${Command} text="ml-dash ui" />`}
  </div>`;
}

/** Where to go afterwards: a place of this origin only. @param {string|undefined} next */
function target(next) {
  const url = new URL(next ?? "/runs", location.origin);
  return url.origin === location.origin ? url.pathname + url.search : "/runs";
}
