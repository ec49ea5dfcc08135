/** What components are made of: `html` templates, signals and hooks. */
import { h, htm } from "../vendor/preact.js";

export {
  Fragment, render, signal, computed, effect, batch, untracked, useSignal, useComputed, useSignalEffect,
  useState, useReducer, useEffect, useLayoutEffect, useRef, useMemo, useCallback, useErrorBoundary, useId,
} from "../vendor/preact.js";

/** Makes elements of a template: html`<p class="dim">${text}</p>`. Values become text, never markup. */
export const html = htm.bind(h);

/**
 * The class names that apply: classes("row", chosen && "chosen").
 * @param {...(string|false|null|undefined)} names
 */
export const classes = (...names) => names.filter(Boolean).join(" ");
