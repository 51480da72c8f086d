"use strict";
/* Where the keyboard goes: into a dialog and back, and on from what an answer of the server has replaced. */
(() => {
  const atelier = window.atelier;
  const STOPS = "a[href], button, input, select, textarea, [tabindex='0']";
  const stopsIn = (node) => [...node.querySelectorAll(STOPS)].filter((each) => !each.disabled && each.checkVisibility());

  /** Open a dialog over the page. Tab stays in it, Escape closes it, and the focus goes back to where it was, or close by where
      that was replaced meanwhile. */
  atelier.modal = (box) => {
    const place = document.activeElement && document.activeElement.closest("[id]");
    box.addEventListener("keydown", (event) => {
      const stops = stopsIn(box), last = event.shiftKey ? stops[0] : stops[stops.length - 1];
      if (event.key !== "Tab" || document.activeElement !== last) return;
      event.preventDefault();
      stops[event.shiftKey ? stops.length - 1 : 0].focus();
    });
    box.addEventListener("close", () => {
      box.remove();
      const near = document.activeElement === document.body && place && place.isConnected && stopsIn(place)[0];
      if (near) near.focus();
    });
    document.body.append(box);
    box.showModal();
  };

  /* ---- boards ---- */

  const presses = new WeakMap();  // board -> {target, act, arg, lands}: what was pressed last
  const openers = new WeakMap();  // board -> what was pressed to open what has the focus now
  const landsIn = (board) => [...board.querySelectorAll("[data-land]")];
  atelier.pressed = (board, target) => presses.set(board,
    {target, act: target.dataset.act, arg: target.dataset.arg, lands: landsIn(board).map((each) => each.dataset.land)});

  const same = (board, {act, arg}) => [...board.querySelectorAll("button[data-act]:not(:disabled)")]
    .find((each) => each.dataset.act === act && each.dataset.arg === arg);

  /** The answer to a press may replace what was pressed. The keyboard goes on at what has appeared for it (data-land); when that
      has gone again, at what opened it; else at the first stop of the board. It stays where a person has moved on. */
  atelier.goOn = (board) => {
    const press = presses.get(board), active = document.activeElement;
    const lost = !active || active === document.body || active.disabled;
    if (!press || !(lost || active === press.target)) return;
    const land = landsIn(board).find((each) => !press.lands.includes(each.dataset.land)), before = openers.get(board) || [];
    if (land) {
      openers.set(board, [...before, press]);
      land.focus();
    } else if (lost) {
      let again = same(board, press);
      while (!again && before.length) again = same(board, before.pop());
      const next = again || stopsIn(board)[0];
      if (next) next.focus({preventScroll: !again});
    } else return;
    presses.delete(board);
  };
  /* ---- tabs ---- */

  const STEPS = {ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity};
  document.addEventListener("keydown", (event) => {
    const tab = event.target.closest && event.target.closest("[role=tab]"), step = STEPS[event.key];
    if (!tab || !step || event.altKey || event.ctrlKey || event.metaKey) return;
    const tabs = [...tab.closest("[role=tablist]").querySelectorAll("[role=tab]")], place = tabs.indexOf(tab);
    const next = tabs[Number.isFinite(step) ? (place + step + tabs.length) % tabs.length : step < 0 ? 0 : tabs.length - 1];
    event.preventDefault();
    next.click();
    next.focus();
  });
  /** A tab that something else than its own button has opened (Start, Back, a result) takes the keyboard along, to its heading. */
  let opened = "";
  const follow = () => {
    const tab = atelier.openTab(), active = document.activeElement;
    if (tab === opened) return;
    const first = !opened, lost = !active || active === document.body || !active.checkVisibility();
    opened = tab;
    const heading = !first && lost && [...document.querySelectorAll(".tab-heading h2")].find((each) => each.textContent === tab);
    if (!heading) return;
    heading.tabIndex = -1;
    heading.focus({preventScroll: true});
  };
  new MutationObserver(() => setTimeout(follow, 50)).observe(document, {subtree: true, attributes: true, attributeFilter: ["aria-selected"]});

  document.addEventListener("keydown", (event) => {  // a question is answered by what changes nothing
    const question = event.key === "Escape" && event.target.closest && event.target.closest("[role=alertdialog]");
    const harmless = question && question.querySelector("[data-land]");
    if (harmless) harmless.click();
  });
})();
