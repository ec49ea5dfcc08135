/** JSON whose whole numbers stay what they are beyond 2^53, as BigInt: a seed must not be shown as its neighbour. */

/**
 * JSON with whole numbers as they are written. A browser that does not hand them over gives what JSON.parse gives.
 * @param {string} text
 * @returns {any}
 */
export function parseExactly(text) {
  /** @type {any} */
  const reviver = (/** @type {string} */ _, /** @type {unknown} */ value, /** @type {{source?: string} | undefined} */ context) =>
    typeof value === "number" && !Number.isSafeInteger(value) && /^-?\d+$/.test(context?.source ?? "")
      ? BigInt(/** @type {{source: string}} */ (context).source)
      : value;
  return JSON.parse(text, reviver);
}

/** @param {unknown} value */
export function valueText(value) {
  if (typeof value === "string") return value;
  return typeof value === "object" && value !== null ? jsonText(value) : String(value);
}

/** JSON of values that may be BigInt, which come out as the whole numbers they are. @param {unknown} value */
export function jsonText(value) {
  /** @type {string[]} */
  const large = [];
  const text = JSON.stringify(value, (_, inner) => (typeof inner === "bigint" ? `\u0000${large.push(String(inner)) - 1}` : inner), 2);
  return text.replace(/"\\u0000(\d+)"/g, (whole, index) => large[index] ?? whole);
}
