// The switch between the light and the dark theme, which this browser keeps. It runs before the page is drawn.
"use strict";

(() => {
  const root = document.documentElement;
  const kept = () => {
    try {
      return localStorage.getItem("theme") || "";
    } catch {
      return ""; // storage may be turned off: then the choice lasts as long as the page
    }
  };
  const use = (theme) => {
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
    else delete root.dataset.theme;
    window.dispatchEvent(new Event("themechange"));
  };
  use(kept());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => window.dispatchEvent(new Event("themechange")));
  document.addEventListener("DOMContentLoaded", () => {
    const choice = document.getElementById("theme");
    choice.value = root.dataset.theme || "";
    choice.addEventListener("change", () => {
      try {
        localStorage.setItem("theme", choice.value);
      } catch {
        // as above
      }
      use(choice.value);
    });
  });
})();
