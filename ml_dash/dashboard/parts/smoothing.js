// What a noisy curve looks like without its noise: an exponential moving average that knows how far apart points are.

/**
 * The distance between two neighbours that is usual here: the median of the steps of `xs`, or 1 if there is none.
 *
 * @param {ArrayLike<number>} xs
 * @returns {number}
 */
export function usualStep(xs) {
  const steps = [];
  // A thousand steps say enough about a million.
  const stride = Math.max(1, Math.floor(xs.length / 1000));
  for (let i = 1; i < xs.length; i += stride) {
    const step = Math.abs(xs[i] - xs[i - 1]);
    if (step > 0 && Number.isFinite(step)) steps.push(step);
  }
  if (!steps.length) return 1;
  steps.sort((a, b) => a - b);
  return steps[steps.length >> 1];
}

/**
 * `values` smoothed by an exponential moving average of `weight` (0 leaves them, 0.99 is very smooth).
 *
 * A point counts `weight` less for each usual step of x that it lies behind, so that a stretch with few points is not
 * smoothed more than one with many. The start is not drawn towards zero: the average is divided by the sum of its
 * weights. A value that is not finite stays as it is, and does not spoil what follows.
 *
 * @param {ArrayLike<number>} xs
 * @param {ArrayLike<number>} values
 * @param {number} weight  0 <= weight < 1
 * @returns {Float64Array}
 */
export function smoothed(xs, values, weight) {
  const result = Float64Array.from(values);
  if (!(weight > 0)) return result;
  const usual = usualStep(xs);
  let sum = 0;
  let weights = 0;
  let before = NaN;
  for (let i = 0; i < result.length; i++) {
    const value = result[i];
    if (!Number.isFinite(value)) continue;
    const apart = Number.isNaN(before) ? 1 : Math.abs(xs[i] - before) / usual;
    // Points at the same x count as neighbours; a step that is not a number counts as a usual one.
    const decay = Math.pow(weight, apart > 0 ? apart : 1);
    sum = sum * decay + value * (1 - weight);
    weights = weights * decay + (1 - weight);
    before = xs[i];
    // After a very long gap the weights have gone: what is new stands alone.
    result[i] = weights > 0 ? sum / weights : value;
  }
  return result;
}
