"use strict";
/* Where the keyboard goes: into a dialog and back, and on from what an answer of the server has replaced. */
(() => {
  const atelier = window.atelier;
  const STOPS = "a[href], button, input, select, textarea, [tabindex='0']";
  const stopsIn = (node) => [...node.querySelectorAll(STOPS)].filter((each) => !each.disabled && each.checkVisibility());
  /** The first stop: on a phone no text field, which would open its keyboard. */
  const firstStop = atelier.firstStop = (node) => stopsIn(node).find((each) => !each.matches("textarea, [type=text], [type=search], [type=number]") || !matchMedia("(hover: none)").matches);

  /* Each open dialog is an entry of the browser's history: Back closes it, as Escape would, and its own buttons go back over it. */
  const open = [], RETURN = 1000;  // from the bottom up; milliseconds that a way back takes at most
  let until = 0;
  const entries = () => (history.state || {}).dialogs || 0;
  /** Whether the browser goes back over the entries of closed dialogs: the address is not written meanwhile. */
  atelier.returns = () => Date.now() < until;
  const level = () => {
    if (atelier.returns()) return;
    const more = open.length - entries();
    if (more < 0) { until = Date.now() + RETURN; history.go(more); }
    history.scrollRestoration = open.length || more < 0 ? "manual" : "auto";  // the page behind stays where it is
    for (let n = 0; n < more; n++) history.pushState({dialogs: entries() + 1}, "");
  };
  addEventListener("popstate", () => {
    while (!atelier.returns() && open.length > entries()) {
      const box = open[open.length - 1];
      if (box.dispatchEvent(new Event("cancel", {cancelable: true}))) box.close();
      if (box.open) break;  // it asks first
      open.pop();
    }
    until = 0;
    level();
  });

  let seat = null;  // where messages are without a dialog
  /** Put the messages into the uppermost dialog: what is behind it is neither seen nor heard. */
  atelier.seatMessages = () => {
    const nodes = ["said-place", "heard"].map(atelier.byId);
    seat = seat || nodes[0].parentElement;
    const home = open[open.length - 1] || seat;
    if (nodes[0].parentElement !== home) home.append(...nodes);
  };

  /** Open a dialog over the page. Tab stays in it, Escape and Back close it, and the focus goes back to where it was, or close by
      where that was replaced meanwhile. */
  atelier.modal = (box) => {
    const place = document.activeElement && document.activeElement.closest("[id]");
    box.addEventListener("keydown", (event) => {
      const stops = stopsIn(box), last = event.shiftKey ? stops[0] : stops[stops.length - 1];
      if (event.key !== "Tab" || document.activeElement !== last) return;
      event.preventDefault();
      stops[event.shiftKey ? stops.length - 1 : 0].focus();
    });
    box.addEventListener("close", () => {
      if (open.includes(box)) open.splice(open.indexOf(box), 1);
      atelier.seatMessages();
      setTimeout(level);  // it may lead to another dialog or tab
      box.remove();
      const near = document.activeElement === document.body && place && place.isConnected && firstStop(place);
      if (near) near.focus();
    });
    document.body.append(box);
    box.showModal();
    if (box.scrollTop) { box.tabIndex = -1; box.focus(); box.scrollTop = 0; }  // its first stop is below the window: it is read from its title
    open.push(box);
    level();
  };

  /* ---- what an answer has replaced ---- */

  const {CONTROLS, nameOf} = atelier, PRESSED = 10000;  // milliseconds that an answer to a press is waited for
  const HEADINGS = "h2:not(.unseen), h3, h4", isSeen = (node) => node.checkVisibility({visibilityProperty: true});
  const headings = () => [...document.querySelectorAll(HEADINGS)].filter(isSeen);
  /** The heading above a node, and that heading later, where it was drawn anew. */
  const headingOf = (node) => headings().filter((each) => each.compareDocumentPosition(node) & Node.DOCUMENT_POSITION_FOLLOWING).pop();
  const headingNow = (heading) => heading && (isSeen(heading) ? heading : headings().find((each) => each.textContent === heading.textContent)) || headings()[0] || tabHeading();
  const tabHeading = () => [...document.querySelectorAll(".tab-heading h2")].find((each) => each.dataset.tab === atelier.openTab());
  /** Give a node the keyboard, in view where `seen`. */
  const take = (node, seen) => {
    if (node.matches("h2, h3, h4, .board")) node.tabIndex = -1;
    node.focus({preventScroll: true});
    if (seen) node.scrollIntoView({block: "nearest"});
  };
  const landsNow = () => [...document.querySelectorAll("[data-land]")];
  let press = null;    // the button that was pressed last, and what could be landed on then
  let before = null;   // and the last one that is in no message
  let openers = [];    // what was pressed to open what has the focus now
  let focused = null;  // the control that has the focus, its name, and the id of what it is in
  const holds = (holder) => (node) => node && !node.disabled && (!holder || holder.contains(node)) && node.checkVisibility();
  /** The same control, drawn anew: by its words and all, or by what it does. */
  const again = ({name, id, act, arg}, holder) => [...(holder || document).querySelectorAll(`${CONTROLS}, ${HEADINGS}`)].filter(holds(holder))
    .find((node) => nameOf(node) === name || (id ? node.id === id : act && node.dataset.act === act && node.dataset.arg === arg));

  const actsLike = (node, board = node.closest(".board")) => board && node.dataset.act ? [...board.querySelectorAll(`button[data-act="${node.dataset.act}"]:enabled`)] : [];

  addEventListener("click", ({target, detail}) => {
    const node = target.closest && target.closest("button"), {act, arg, then} = node ? node.dataset : {};
    if (node && node.matches("[role=tab]")) press = null;  // answered by the tab itself, also when the address has opened it
    else if (node && press && node.matches("dialog [type=submit]")) press.until = Date.now() + PRESSED;  // the answer to its question
    else if (node) press = {node, name: nameOf(node), id: node.id, act, arg, then, heading: before && node.closest("#said") ? before.heading : headingOf(node), board: node.closest(".board"), at: actsLike(node).indexOf(node), keys: !detail, lands: landsNow().map((each) => each.dataset.land), until: Date.now() + PRESSED};
    if (node && press && !node.closest("#said")) before = press;
  }, true);
  addEventListener("focusin", ({target}) => {
    const inside = target.matches(`${CONTROLS}, ${HEADINGS}`) && target.parentElement.closest("[id]");
    focused = inside ? {node: target, name: nameOf(target), inside: inside.id, heading: headingOf(target), path: pathOf(target)} : null;
    if (target.matches(":focus-visible")) showWhole(target);
  }, true);
  /** Scroll the rows around a control until it is seen whole: browsers leave one alone whose edge is in sight. */
  const showWhole = (node) => {
    for (let row = node.parentElement; row; row = row.parentElement) {
      if (row.scrollWidth <= row.clientWidth || getComputedStyle(row).overflowX !== "auto") continue;
      const inner = node.getBoundingClientRect(), outer = row.getBoundingClientRect();
      row.scrollLeft += Math.max(0, inner.right - outer.right) || Math.min(0, inner.left - outer.left);
    }
  };
  addEventListener("pointerdown", ({target}) => { byKeys = false; if (!target.closest || !target.closest(CONTROLS)) focused = null; }, {capture: true, passive: true});
  addEventListener("keydown", ({key}) => {
    byKeys ||= document.activeElement !== document.body;
    if (key === "Tab") setTimeout(() => { if (document.activeElement === document.body) focused = null; });  // out of the page
  }, true);

  /* What a key has disabled, hidden or removed leaves the keyboard at the heading above it, and goes on there as soon as it can be
     pressed again, or another button that has its place (data-place). A button of a message leaves it where the message came from.
     In a board `goOn` does this. */
  let byKeys = false, waits = null;  // {heading, left: as of `focused`}
  const pathOf = (node) => { const path = []; for (let each = node.parentElement; each; each = each.parentElement) path.push(each); return path; };
  setInterval(() => {
    const active = document.activeElement || document.body;
    if (waits && active !== waits.heading) waits = null;
    const lost = waits ? waits.left : focused && byKeys && [document.body, focused.node].includes(active) ? focused : null;
    if (!lost || (isSeen(lost.node) && ((lost.node.ariaBusy && lost.node.disabled) || (active === lost.node && !active.disabled)))) return;
    const board = lost.path.find((each) => each.matches(".board"));
    if (board) {
      if (active === document.body && !lost.node.isConnected && board.isConnected && !(press && press.board === board && Date.now() < press.until)) take(board);
      return;
    }
    const {place, entry} = lost.node.dataset, holder = document.getElementById(lost.inside), field = lost.path.find((each) => each.matches(".field"));
    const others = place && holder ? [...holder.querySelectorAll(`[data-place="${place}"]`)].filter((each) => each.dataset.entry === entry) : field ? field.querySelectorAll("input, select, textarea") : [];
    const from = lost.inside.startsWith("said") ? before : null;
    const next = again({name: lost.name}, holder) || [lost.node, ...others, from && !from.then && from.node].find((each) => each && each.isConnected && !each.disabled && isSeen(each));
    const heading = !next && !waits && headingNow((from || lost).heading);
    if (next || heading) take(next || heading, true);
    if (heading) waits = {heading, left: lost};
  }, 100);

  /** A list that is drawn anew keeps the keyboard where it was. */
  new MutationObserver(() => {
    if (!focused || ![document.body, focused.node].includes(document.activeElement)) return;
    if (focused.node.isConnected && nameOf(focused.node) === focused.name) return;
    const holder = document.getElementById(focused.inside), twin = holder && again({name: focused.name}, holder);
    if (twin) take(twin);
    else focused.name = nameOf(focused.node);  // another one now, or the same one with other words
  }).observe(document, {childList: true, subtree: true});

  /** A board has the answer to a press. The keyboard goes on at what has appeared for it anywhere (data-land); when that has gone
      again, at what opened it; at what takes the press back (data-then), or another button that does the same; else at the heading above
      it, or the board, after a mouse its first stop. It stays where a person has moved on. */
  atelier.goOn = (board) => {
    const active = document.activeElement, other = press && active === press.node && active.dataset.again === undefined && active.dataset.arg !== press.arg;  // that has taken its place
    const lost = !active || active === document.body || active.disabled || other;
    if (!press || Date.now() > press.until || !(lost || active === press.node)) return;
    const land = landsNow().find((each) => !press.lands.includes(each.dataset.land) && each.checkVisibility());
    if (land) {
      openers.push({...press, landed: land.dataset.land});
      land.focus();
      if (land.select) land.select();
      press = null;
    } else if (lost && (!press.board || press.board === board || !press.node.isConnected)) {
      let next = again(press, press.board);
      if (next) press.node = next;  // what it opens may come with the answer of another board
      const stays = ({landed}) => landsNow().some((each) => each.dataset.land === landed && each.checkVisibility());
      while (!next && openers.length && !stays(openers[openers.length - 1])) { const opener = openers.pop(); next = (opener.board && again(opener, opener.board)) || again(opener); }
      const {then} = press, rest = then ? [] : actsLike(press.node, board), heading = headingNow(press.heading);
      const stop = next || (then && board.querySelector(`[data-act="${then}"]:enabled`)) || rest[Math.min(press.at, rest.length - 1)] || (board.contains(heading) ? heading : press.keys ? board : firstStop(board));  // a second key presses nothing
      if (stop) take(stop, press.keys);  // the page stays where a mouse has pressed
    }
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
    const heading = !first && lost && tabHeading();
    if (!heading) return;
    heading.tabIndex = -1;
    heading.focus({preventScroll: true});
  };
  new MutationObserver(() => setTimeout(follow, 50)).observe(document, {subtree: true, attributes: true, attributeFilter: ["aria-selected"]});
})();
