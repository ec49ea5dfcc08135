/** Modules of a screen, asked for at once: a browser that finds each only in the one before waits for one after the other. */

/** What charts are made of. A test compares this with what the modules import. */
export const CHARTS = [
  "parts/axes.js", "parts/chart.js", "parts/chartbar.js", "parts/chartfiles.js", "parts/chartgrid.js", "parts/chartoptions.js",
  "parts/cursor.js", "parts/curves.js", "parts/envelope.js", "parts/gridlayout.js", "parts/means.js", "parts/plot.js",
  "parts/smoothing.js", "parts/useseries.js", "lib/colors.js", "lib/format.js", "lib/prefs.js", "lib/stylesheet.js", "parts/dialog.js", "parts/menu.js",
  "vendor/uplot.js",
];

/** What the screen of one run is made of, beside charts. */
export const RUN = [
  "screens/run-charts.js", "screens/run-edit.js", "screens/run-tabs.js", "parts/loglines.js", "parts/markdown.js",
  "parts/status.js", "parts/tabs.js",
];

/** What the screen that compares runs is made of, beside charts. */
export const COMPARE = [
  "screens/compare-files.js", "screens/compare-parameters.js", "screens/compare-plane.js", "parts/parallel.js", "parts/planeaxis.js",
  "parts/scatter.js", "parts/tabs.js", "lib/fields.js",
];
