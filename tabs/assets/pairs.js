"use strict";
/* Images with a control image, on Dataset, Captions and Train: the image alone, both side by side, or one over the other. A button or the
   key o changes it for all; each browser remembers its way. */
(() => {
  const WAYS = ["beside", "over", "alone"], ROOT = document.body, KEPT = "atelier-pairs";
  const show = (way) => {
    ROOT.dataset.pairs = WAYS.includes(way) ? way : WAYS[0];
    for (const button of document.querySelectorAll("[data-pair-view]")) button.setAttribute("aria-pressed", `${button.dataset.pairView === ROOT.dataset.pairs}`);
  };
  const choose = (way) => {
    show(way);
    window.atelier.remember(KEPT, way);
  };
  show(window.atelier.recall(KEPT));
  new MutationObserver(() => { if (document.querySelector("[data-pair-view]:not([aria-pressed])")) show(ROOT.dataset.pairs); }).observe(document.body, {childList: true, subtree: true});
  window.atelier.on("click", "[data-pair-view]", (button) => choose(button.dataset.pairView));
  document.addEventListener("keydown", (event) => {
    const free = !event.ctrlKey && !event.altKey && !event.metaKey && !event.target.closest("input, textarea, select, dialog, [contenteditable]");
    const there = [...document.querySelectorAll("[data-pair-view]")].some((button) => button.offsetParent);
    if (free && there && event.key === "o") choose(WAYS[(WAYS.indexOf(ROOT.dataset.pairs) + 1) % WAYS.length]);
  });
})();
