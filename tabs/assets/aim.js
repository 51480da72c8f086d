"use strict";
/* A click is for what a person aimed at. What comes under a resting pointer by itself (the next job's Cancel in a list that moved
   up, the next question's answers) takes no click for a moment. */
(() => {
  const atelier = window.atelier, CONTROLS = atelier.CONTROLS = "button, a[href], label, summary, input, select, [role=option]";
  const MOMENT = 600;      // milliseconds that a control which came by itself takes no click
  const LOOK = 100;
  const REST = {mouse: 6, touch: 24};  // pixels that a hand at rest moves
  const SCROLLED = 500;    // milliseconds after a turn of the wheel in which what comes was brought by it
  let x = -1, y = -1, under = "", meant = "", pointed = "", since = -MOMENT, turned = -SCROLLED;

  /** Which control it is. Lists are drawn anew, so elements do not tell; buttons for paging (data-again) are pressed again and again. */
  const nameOf = atelier.nameOf = (node) => {
    const {act = "", arg = "", entry = "", action = "", again} = node.dataset;
    const named = node.id || act === "pick" || (entry && action);  // a row of a list is the same one whatever it says by now
    return [node.id, act, again === undefined ? arg : "", entry, action, named ? "" : node.getAttribute("aria-label") || node.textContent].join("\n");
  };
  const look = (aimed) => {
    const node = x < 0 ? null : document.elementFromPoint(x, y), control = node && node.closest(CONTROLS);
    const now = control ? nameOf(control) : "";
    if (aimed) meant = now;  // and a message that lay over it for a while changes nothing in that
    if (aimed || now === meant || now === pointed) since = -MOMENT; else if (now !== under) since = performance.now();
    under = now;
  };
  const brought = () => performance.now() < turned + SCROLLED;
  const point = (event) => {
    const rests = Math.hypot(event.clientX - x, event.clientY - y) <= (REST[event.pointerType] || REST.mouse);
    if (!rests) { x = event.clientX; y = event.clientY; }
    look(!rests || brought());
    if (!rests) pointed = under;  // until the page is scrolled by hand: keys that scroll it away and back leave the pointer's aim
  };

  setInterval(() => { if (!document.hidden) look(brought()); }, LOOK);
  addEventListener("pointermove", point, {capture: true, passive: true});
  for (const kind of ["wheel", "touchmove", "keydown"]) addEventListener(kind, () => { turned = performance.now(); if (kind !== "keydown") pointed = ""; }, {capture: true, passive: true});
  // A page also scrolls on by itself: after a flick of the finger for seconds, on a busy machine late.
  addEventListener("scroll", () => { if (brought()) turned = performance.now(); }, {capture: true, passive: true});
  let early = false, held = null, name = "";
  addEventListener("pointerdown", (event) => {
    point(event);
    early = !!under && performance.now() < since + MOMENT;
    held = !early && event.pointerType === "mouse" && event.button === 0 && event.target.closest ? event.target.closest("button") : null;
    name = held ? nameOf(held) : "";
  }, {capture: true, passive: true});
  /* The browser sends no click to a button that was drawn anew while it was pressed, as by the save of the field that was left. */
  addEventListener("pointerup", (event) => {
    const at = held && !held.isConnected && document.elementFromPoint(event.clientX, event.clientY), now = at && at.closest("button");
    if (now && nameOf(now) === name) setTimeout(() => now.click());
    else if (now && now.id && now.id === held.id) atelier.say({kind: "info", text: "Nothing was done: the button changed while you pressed it. Press it again."});
    held = null;
  }, {capture: true, passive: true});
  /* Nor for a Space pressed on it: the key goes down on one, and up on another. */
  let spaced = null;
  addEventListener("keydown", ({key, target}) => { spaced = key === " " && target.matches && target.matches("button, input[type=checkbox]") ? target : null; }, true);
  addEventListener("keyup", ({key}) => {
    const now = document.activeElement;
    if (key === " " && spaced && !spaced.isConnected && now && now.matches("button, input[type=checkbox]") && nameOf(now) === nameOf(spaced)) setTimeout(() => now.click());
    spaced = null;
  }, true);
  /* Nor is a key for what has got the focus since it went down: Enter in a search opens what it finds, and presses nothing there. */
  let down = "";
  const controlName = (node) => (node.matches && node.matches(CONTROLS) ? nameOf(node) : "");
  addEventListener("keydown", ({isTrusted, repeat, target}) => { if (isTrusted && !repeat) down = controlName(target); }, true);
  addEventListener("keypress", (event) => { if (event.isTrusted && ["Enter", " "].includes(event.key) && controlName(event.target) !== down) event.preventDefault(); }, true);
  for (const kind of ["mousedown", "click"]) addEventListener(kind, (event) => {
    if (!early || !event.isTrusted || !event.detail || !event.target.closest || !event.target.closest(CONTROLS)) return;
    event.preventDefault();
    event.stopImmediatePropagation();
  }, true);
})();
