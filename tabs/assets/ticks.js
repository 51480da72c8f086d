"use strict";
/* When the server is asked what is new: each second while something runs, changes, or a person is at work on the page; seldom when
   nothing does; hardly ever while the page is hidden. Coming back to it asks at once. */
(() => {
  const atelier = window.atelier;
  const BUSY = 1000, IDLE = 11000, LEFT = 30000, HIDDEN = 60000; // milliseconds between ticks; idle: the pulse and a tab's make 11 a minute
  const AT_WORK = 20000, NEWS = 4000; // how long a person's touch, or something new, keeps the pace
  const AWAY = 300000;                // after which nobody is taken to look
  const LOOK = 100;
  const raised = {};       // event -> when
  let touched = Date.now(), runs = false;

  const between = () => {
    const rests = Date.now() - touched;
    return document.hidden ? HIDDEN : atelier.loggedOut ? IDLE : runs || rests < AT_WORK ? BUSY : rests < AWAY ? IDLE : LEFT;
  };
  const touch = (keeps) => { touched = Math.max(touched, Date.now() - AT_WORK + keeps); };
  const raise = (event, seconds) => {
    const now = Date.now();
    if (now - (raised[event] || 0) < Math.max(between(), 1000 * seconds) - LOOK / 2) return;
    raised[event] = now;
    if (event === "tick") atelier.tick(); else atelier.pulse().trigger(event, {});
  };

  /* An image that could not be fetched is asked for once more when the server is heard again, such as after a restart. */
  const failed = new Set(), again = new WeakMap(); // image -> the address that was asked for twice
  addEventListener("error", ({target}) => { if (target instanceof HTMLImageElement && again.get(target) !== target.src) failed.add(target); }, true);

  const clients = () => [...document.querySelectorAll(".client textarea, .client input")];
  /** An answer was ignored (tabs/markup.py): forget what the server believes is shown, so that the next tick returns the tab whole. */
  const forget = () => clients().forEach((box) => {
    box.value = "";
    box.dispatchEvent(new Event("input", {bubbles: true}));
  });
  atelier.askAgain = () => [0, 500].forEach((wait) => setTimeout(forget, wait));  // twice: the same answer may fill the box after the first
  /** The stamps of what is shown (tabs/markup.py). */
  atelier.shown = () => clients().map((box) => { try { return JSON.parse(box.value).stamp; } catch { return ""; } });
  /** The open tab shows something else than there is now. */
  atelier.parts.due = () => atelier.pulse().trigger(`tick_${atelier.openTab().toLowerCase()}`, {});

  /** A part of a message has come: what changes may change further. */
  atelier.arrived = (name, data) => {
    if (name === "status") runs = !!data.busy;
    else touch(NEWS);
    for (const image of failed) { again.set(image, image.src); image.src = image.src; }
    failed.clear();
  };
  setInterval(() => {
    if (!atelier.pulse() || !atelier.session) return;
    const tab = atelier.openTab();
    raise("tick", 1);
    if (tab in atelier.ticks) raise(`tick_${tab.toLowerCase()}`, atelier.ticks[tab]);
  }, LOOK);
  for (const event of ["pointerdown", "keydown", "input", "wheel", "hashchange", "focus"]) addEventListener(event, () => touch(AT_WORK), {capture: true, passive: true});
  document.addEventListener("visibilitychange", () => { if (!document.hidden) for (const event in raised) raised[event] = 0; });
})();
