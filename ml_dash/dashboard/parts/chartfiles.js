/** What is drawn, as a file to take along. */

/** @typedef {import("./plot.js").Drawn} Drawn */

/**
 * @param {string} name
 * @param {string} x
 * @param {Drawn[]} curves
 */
export function saveCsv(name, x, curves) {
  save(new Blob([csvOf(x, curves)], { type: "text/csv" }), `${fileName(name)}.csv`);
}

/**
 * One line for each entry that is drawn; `min` and `max` differ where an entry stands for many points.
 *
 * @param {string} x
 * @param {Drawn[]} curves
 * @returns {string}
 */
export function csvOf(x, curves) {
  const smooth = curves.some((curve) => curve.raw);
  const lines = [["run", "name", x, "min", "max", ...(smooth ? ["smoothed"] : [])].map(cell).join(",")];
  for (const { run, name, x: xs, min, max, line, faint } of curves) {
    if (faint) continue;
    const head = `${cell(run)},${cell(name)}`;
    for (let i = 0; i < xs.length; i++) lines.push(`${head},${xs[i]},${min[i]},${max[i]}${smooth ? `,${line[i]}` : ""}`);
  }
  return `${lines.join("\n")}\n`;
}

/** @param {string} text */
export function cell(text) {
  // A cell that begins like a formula is run as one by spreadsheets.
  const plain = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\n\r]/.test(plain) ? `"${plain.replaceAll('"', '""')}"` : plain;
}

/**
 * The chart with its name and legend, on the background of the page.
 *
 * @param {import("./plot.js").Plot} plot
 * @param {string} name
 * @param {Drawn[]} curves
 * @param {HTMLElement | null} at
 */
export function savePng(plot, name, curves, at) {
  const source = plot.canvas();
  if (!source || !at) return;
  const ratio = devicePixelRatio || 1;
  const shown = curves.filter((curve) => !curve.faint).slice(0, 20);
  const line = 16 * ratio;
  const [width, top] = [source.width, 28 * ratio];
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = top + source.height + (shown.length > 1 ? (shown.length + 0.5) * line : 0);
  const ctx = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const style = getComputedStyle(document.body);
  ctx.fillStyle = style.backgroundColor;
  ctx.fillRect(0, 0, canvas.width, canvas.height);
  ctx.fillStyle = style.color;
  ctx.font = `600 ${13 * ratio}px ${style.fontFamily}`;
  ctx.fillText(name, 10 * ratio, 18 * ratio, width - 20 * ratio);
  ctx.drawImage(source, 0, top);
  ctx.font = `${11 * ratio}px ${style.fontFamily}`;
  if (shown.length > 1) {
    shown.forEach((curve, i) => {
      const y = top + source.height + (i + 0.75) * line;
      ctx.fillStyle = curve.color;
      ctx.fillRect(10 * ratio, y - 8 * ratio, 10 * ratio, 8 * ratio);
      ctx.fillStyle = style.color;
      ctx.fillText(curve.name, 26 * ratio, y, width - 36 * ratio);
    });
  }
  canvas.toBlob((blob) => blob && save(blob, `${fileName(name)}.png`));
}

/** @param {string} name */
const fileName = (name) => name.replace(/[^\p{L}\p{N}._-]+/gu, "-").replace(/^[.-]+/, "") || "chart";

/**
 * @param {Blob} blob
 * @param {string} name
 */
function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  // The download has begun when the click returns; the browser holds the blob until it ends.
  URL.revokeObjectURL(link.href);
}
