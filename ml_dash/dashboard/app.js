// The entry of the dashboard.

const app = document.getElementById("app");
if (app) app.textContent = "ml-dash";
