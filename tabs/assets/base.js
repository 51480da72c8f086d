"use strict";
/* The page's own script: small, without libraries, and without any request but the page's own messages.
   Gradio carries the messages; this file hands them to the parts that draw (form.js, monitor.js, ...). */
(() => {
  const atelier = window.atelier, {h} = atelier;
  const parts = {};        // name -> function(data): who draws which part of a message
  const have = {};         // name -> signature of the part that is on the screen
  const buses = {};        // name -> {element, props, watch, trigger} of a carrier
  const outstanding = new Map(); // number of a sent change -> time
  const unsaved = new Map();     // and -> {field: value}, until the server has confirmed them
  const lost = new Map();        // and -> {field: value} that was not confirmed within LOST, until the form is filled again
  const named = [];              // numbers of lost changes that a message has named
  const refused = new Set();     // numbers of changes that kept a start from beginning
  const LOST = 20000;      // milliseconds after which a change is not waited for
  const PATIENCE = 15000;  // milliseconds that an action waits for the changes before it
  let sent = 0;

  atelier.parts = parts;
  atelier.have = have;
  atelier.stamp = "";
  atelier.session = "";    // by which the server knows this window; given with the first filling
  atelier.fields = atelier.fields || {};

  /* Keys that an input method takes are not the page's, as the Enter that chooses a word: Safari sends it after the composition, as 229. */
  window.addEventListener("keydown", (event) => { if (event.isComposing || event.keyCode === 229) event.stopImmediatePropagation(); }, true);

  /* ---- messages ---- */

  /** Called by the hidden carriers when they appear; `js_on_load` may run before or after this file. */
  atelier.attach = () => {
    for (const bus of window.atelierBuses || []) {
      if (buses[bus.name] && buses[bus.name].element === bus.element) continue;
      buses[bus.name] = bus;
      bus.watch("value", () => atelier.receive(bus.props.value));
    }
  };

  atelier.receive = (text) => {
    if (!text) return;
    let message;
    try { message = JSON.parse(text); } catch { return; }
    for (const [name, part] of Object.entries(message)) {
      if (name === "acks") { for (const number of part) for (const each of [outstanding, unsaved, lost]) each.delete(number); continue; }
      have[name] = part.sig;
      atelier.arrived(name, part.data);
      try { if (parts[name]) parts[name](part.data); }
      catch (error) { console.error(`The part '${name}' cannot be drawn`, error); }
      if (name === "form" && have.form && lost.size) nameLost();
    }
  };

  /** What the tick asks with: which parts the screen holds, and which run is looked at. */
  atelier.ask = () => JSON.stringify({session: atelier.session, have, tab: atelier.openTab(), shown: atelier.shown(), run: atelier.chosenRun || "", wants: Object.assign({}, ...wants.map((of) => of()))});
  /** `of` returns what is asked for now, by name. */
  const wants = [];
  atelier.want = (of) => wants.push(of);
  /** Post JSON to an address of the page's own, not through Gradio. */
  atelier.post = async (name, body, more) => {
    const answer = await fetch(`atelier/${name}`, {method: "POST", headers: {"Content-Type": "application/json"}, body, ...more}).catch(() => { throw new Error("no connection"); });
    loggedOut(answer.status === 401);
    return answer;
  };
  /** After a restart of a shared page's server a window has no login. It keeps what it shows and continues once there is one again. */
  const LOGIN = "login";
  const loggedOut = (out) => {
    if (out && !atelier.loggedOut) atelier.say({id: LOGIN, kind: "error", title: "Log in again", text: "The server knows this window no longer, as after a restart. Log in in a new window, then come back: what you typed here is kept.", open: ["./", "Log in"]});
    else if (atelier.loggedOut && !out && lastSaid === LOGIN) atelier.byId("said").hidden = true;
    atelier.loggedOut = out;
  };
  /** The server's answer to a request. Throws where it does not answer. */
  atelier.request = async (name, asked, more) => {
    const answer = await atelier.post(name, JSON.stringify(asked), more);
    if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
    return answer.json();
  };
  /** The problem of a request that has failed, in the server's words where it has some. answer: null where it does not answer; where: the files of an upload */
  const FIXES_OF_FILES = {413: "choose fewer or smaller files", 429: "choose fewer or smaller files, or try again in an hour"};
  const FIXES = {401: "log in again", 413: "shorten what you entered", 422: "reload the page", 507: "free disk space on the computer where Atelier runs, then try again"};
  atelier.failure = async (answer, where = "") => {
    if (!answer) return {what: "The server does not answer", where, fix: "check that Atelier still runs, then try again"};
    const {error} = await answer.clone().json().catch(() => null) || {};
    return {what: error ? error.split(/[.](?: |$)/)[0] : `The server answered ${answer.status}`, where, fix: (where && FIXES_OF_FILES[answer.status]) || FIXES[answer.status] || "try again"};
  };
  /** What the server answers to a question; `problems` with `lost` where it does not. tooLarge: what and fix of one that is not taken */
  atelier.question = async (name, asked, tooLarge) => {
    const answer = await atelier.post(name, JSON.stringify(asked)).catch(() => null);
    if (answer && answer.ok) return answer.json();
    const problem = await atelier.failure(answer), [what, fix] = answer && answer.status === 413 && tooLarge || [problem.what, problem.fix];
    return {lost: true, problems: [{...problem, what, fix}]};
  };
  /** One tick, unless the one before is still on its way. What the server does not answer, the next one asks for. */
  const GONE = "gone", MOST_MISSED = 3, HUNG = 20000; // milliseconds
  let ticking = false, missed = 0;
  atelier.tick = async () => {
    if (ticking) return;
    ticking = true;
    try {
      const answer = await atelier.post("pulse", atelier.ask(), {signal: AbortSignal.timeout(HUNG)});
      if (answer.status === 200) atelier.receive(await answer.text());
      if (missed >= MOST_MISSED && lastSaid === GONE) { atelier.byId("said").hidden = true; lastSaid = ""; }
      missed = 0;
    } catch {
      missed += 1;
      if (missed === MOST_MISSED) atelier.say({id: GONE, kind: "error", title: "The server does not answer", text: "What this page shows may be out of date. It updates when the server answers again; if it was closed, start it again."});
    } finally { ticking = false; }
  };

  /** The next change is of these fields: older ones of them no longer count. */
  const awaited = (values) => {
    for (const older of [...unsaved.values(), ...lost.values()]) for (const path in values) delete older[path];
    unsaved.set(sent + 1, {...values});
  };
  /** Changes of fields of the Train form, {path: value}. Their number lets the server keep the order and Start wait for them.
      did: the name of one undo step of all */
  atelier.edit = (values, did = "") => {
    if (!buses.form) return;
    awaited(values);
    send("edit", {values, did});
  };
  /** Whether a change of this field is on its way. */
  atelier.isUnsaved = (path) => onTheirWay().some((number) => unsaved.has(number) && path in unsaved.get(number));

  /* What a person did in a field since it was last sent: Gradio also reports fields that are only passed through, with what
     they held before the server filled them. */
  const used = new Set();
  for (const kind of ["input", "mousedown", "keydown"]) document.addEventListener(kind, (event) => {
    const does = kind === "mousedown" ? event.target.closest("[role=option], button, .token-remove, .token") : kind === "input" || ["Enter", "Backspace", "Delete"].includes(event.key);
    const block = does && event.target.closest(".block[id]");
    if (block) used.add(block.id);
  }, true);
  /** "yes" if the user changed the field since the last call, else "". */
  atelier.edited = (id) => used.delete(id) ? "yes" : "";

  /** The numbers of the changes that the server has not answered yet. One that it does not answer counts until the form is filled
      again: it would show a value that Start does not use. */
  const onTheirWay = () => {
    for (const [number, when] of outstanding) if (Date.now() - when > LOST) giveUp(number);
    return [...outstanding.keys(), ...lost.keys()];
  };
  const giveUp = (number) => {
    outstanding.delete(number);
    if (!unsaved.has(number)) return;
    lost.set(number, unsaved.get(number));
    unsaved.delete(number);
    delete have.form;
    atelier.tick();
  };
  /** What the form shows in a field, as its control sends it. */
  const shownIn = (path) => {
    const nodes = [...document.querySelectorAll(`#train-form [data-set="${path}"]`)], node = nodes.find((each) => each.checked) || nodes[0];
    return node && (node.type === "checkbox" ? String(node.checked) : node.value);
  };
  /** Whether two texts of a field are the same value: the server writes 2.0e-4 as 2e-4. */
  atelier.sameValue = (one, other) => one.trim() === other.trim() || Boolean(one.trim() && other.trim()) && Number(one) === Number(other);
  /** Name the changes, [field, value], that the form does not show; whether there are some. */
  const nameUnsaved = (changes, title, before, after) => {
    const gone = changes.filter(([path, value]) => { const shown = shownIn(path); return shown !== undefined && !atelier.sameValue(shown, value); });
    const words = gone.map(([path, value]) => `${atelier.fields[path].title} to "${({true: "on", false: "off"})[value] || value.slice(0, 60)}"`);
    if (gone.length) atelier.say({kind: "error", title, text: `${before} ${words.join(" and ")}. ${after}`});
    return gone.length > 0;
  };
  const nameLost = () => {
    const changes = [...lost.values()].flatMap(Object.entries);
    const title = [...lost.keys()].some((number) => refused.has(number)) ? "Not started" : "Not confirmed";
    if (nameUnsaved(changes, title, "The server did not answer when you changed", "Check the value, and enter it again.")) named.push(...lost.keys());
    lost.clear();
  };
  /** An action on the form or the presets (put back, undo, load ...). It waits for the changes that are on their way: they may
      not overtake each other, or a preset would be saved without the value that was typed last; nor may two actions. */
  let acting = Promise.resolve();
  atelier.act = (name, data) => acting = acting.catch(() => {}).then(async () => {
    if (!buses.form) return;
    if ((await atelier.settle()).length) {
      return atelier.say({kind: "error", title: "Error", text: "Your last change has not been sent yet. Check the fields, then try again."});
    }
    send(name, data);
  });
  const send = (name, data) => {
    sent += 1;
    outstanding.set(sent, Date.now());
    buses.form.trigger("act", {name, stamp: atelier.stamp, n: sent, ...(data || {})});
  };
  /** Ask for the form and its lists. */
  atelier.refill = () => { if (buses.form) send("refill"); else setTimeout(atelier.refill, 100); };
  /** An action on runs, the queue or a download. */
  let askedOn = "";  // the tab on which something was asked for last: only from there an answer leads to another one
  atelier.asksHere = () => { askedOn = atelier.openTab(); };
  atelier.command = (name, data) => { atelier.asksHere(); return buses.pulse && buses.pulse.trigger("command", {name, ...(data || {})}); };
  atelier.pulse = () => buses.pulse;
  /** A pressed button takes no second press, until it is drawn again, an error comes (it was refused), or nothing has come of the first one. */
  const pressed = new Set();
  atelier.once = (button, again = () => { button.disabled = false; }, patience = LOST) => {
    const back = () => { if (pressed.delete(back)) { button.ariaBusy = null; again(); } };
    button.disabled = true;
    button.ariaBusy = "true";  // it keeps the keyboard (focus.js)
    pressed.add(back);
    setTimeout(back, patience);
  };

  const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
  /** What `find` returns as soon as it finds something, null after `patience` milliseconds. */
  atelier.whenFound = async (find, patience = 8000) => {
    for (const end = Date.now() + patience; ; await pause(25)) {
      const found = find();
      if (found || Date.now() > end) return found || null;
    }
  };
  /* What was typed is sent before a file is dropped or chosen: or it would stay in front of what the file brings. */
  for (const kind of ["drop", "change"]) addEventListener(kind, ({target}) => {
    if ((kind === "drop" || target.type === "file") && document.activeElement.matches("textarea, input:not([type=file])")) document.activeElement.blur();
  }, true);
  addEventListener("beforeunload", () => document.activeElement.blur());  // and before the page is left
  /** Leave the field that is being typed in, and wait until the server has every change. */
  atelier.settle = async () => {
    const active = document.activeElement;
    if (active && active.closest && active.closest(".field, #json-pane")) active.blur();
    await pause(60);
    const begin = Date.now(), waits = `waits-${begin}`, before = named.length;
    while (onTheirWay().length && Date.now() < begin + PATIENCE) {
      if (Date.now() > begin + 2000) atelier.say({id: waits, kind: "info", text: "Sending your last change ..."});
      await pause(25);
    }
    if (lastSaid === waits) atelier.byId("said").hidden = true;
    return [...onTheirWay(), ...named.slice(before)];
  };
  atelier.startMessage = async (how) => {
    const button = atelier.byId(how === "start" ? "start" : "enqueue");
    atelier.asksHere();
    if (atelier.jsonEdited && atelier.jsonEdited() && !(await atelier.dialog({title: "Discard the JSON edits?", ok: "Discard",
      text: "The JSON has edits that are not applied. Training uses the form's values."}))) return JSON.stringify({how: "nothing"});
    const token = crypto.getRandomValues(new Uint32Array(2)).join("-");
    if (button) { button.classList.add("busy"); setTimeout(() => button.classList.remove("busy"), 1500); }
    atelier.say({id: token, kind: "info", text: "Checking the settings and images ..."});
    const open = await atelier.settle();
    for (const number of open) refused.add(number);
    return JSON.stringify({stamp: atelier.stamp, how, token, open});
  };

  /* ---- tabs ---- */

  /* By their identifiers: a browser that translates the page changes their words. */
  const tabButtons = () => [...document.querySelectorAll("#tabs > .tab-wrapper [role=tab]")];
  atelier.openTab = () => {
    const open = tabButtons().find((button) => button.getAttribute("aria-selected") === "true");
    return open ? open.dataset.tabId : "";
  };
  atelier.goTo = (tab) => {
    const wanted = tabButtons().find((button) => button.dataset.tabId === tab);
    if (wanted && wanted.getAttribute("aria-selected") !== "true") wanted.click();
    return !!wanted;
  };
  atelier.hasTab = (tab) => tabButtons().some((button) => button.dataset.tabId === tab);
  /* The address keeps the open tab, the chosen or open run (#Monitor/<run>, #Runs/<run>) and those that are compared (#Runs/<A>/<B>), so that a refresh
     shows the same, and each of these is a page of the browser's history: Back goes to the one before. `followed` is the address that
     was last acted on: another one is not written over. `bound` is the tab that it leads to, until that is open. */
  const BOUND = 3000;
  let followed = null, bound = null;
  const inWords = (text) => { try { return decodeURIComponent(text); } catch { return text; } };  // a % may be just that
  const follow = () => {
    followed = location.hash;
    const [tab, ...runs] = inWords(location.hash.slice(1)).split("/");
    if (tab === "Monitor" && atelier.chooseRun && (runs[0] || "") !== atelier.chosenRun) atelier.chooseRun(runs[0], true);
    if (tab === "Runs" && atelier.compareRuns) { atelier.compareRuns(runs); atelier.openRun(runs.length === 1 ? runs[0] : ""); }
    bound = {tab: atelier.hasTab(tab) ? tab : atelier.openTab(), until: Date.now() + BOUND};
    atelier.goTo(bound.tab);
    atelier.keepAddress();
  };
  /** Write what is shown into the address: a new page of the history, but the same one where an address was followed or is void, or
      that of a dialog which led here. */
  atelier.keepAddress = (same) => {
    if (location.hash !== followed) return follow();  // its event is on the way, or never comes: a script put it there
    const tab = atelier.openTab();
    if (!tab || atelier.returns() || (bound && bound.tab !== tab && Date.now() < bound.until)) return;  // the tab that was asked for is on its way
    const runs = tab === "Monitor" && atelier.chosenRun ? [atelier.chosenRun] : tab === "Runs" && atelier.compared ? atelier.compared() : [];
    const wanted = "#" + [tab, ...runs.map(encodeURIComponent)].join("/");
    if (location.hash !== wanted) history[bound || same || (history.state || {}).dialogs ? "replaceState" : "pushState"](null, "", wanted);
    bound = null;
    followed = location.hash;
  };
  addEventListener("hashchange", follow);

  /* ---- dialogs ---- */

  /** Ask inside the page. Returns the text (or true), null when it was cancelled. */
  atelier.dialog = ({title, text, input, ok = "OK", danger = false, check}) => new Promise((done) => {
    const field = input === undefined ? null : h("input", {type: "text", value: input, "aria-label": title, autocomplete: "off", maxlength: 100});
    const warning = h("p", {class: "field-error", role: "alert", hidden: true});
    const box = h("dialog", {class: "atelier-dialog", "aria-label": title},
      h("form", {method: "dialog", onsubmit: (event) => {
        event.preventDefault();
        const problem = field && check ? check(field.value.trim()) : "";
        if (problem) { warning.textContent = problem; warning.hidden = false; return; }
        done(field ? field.value.trim() : true); box.close();
      }},
        h("h2", {}, title), text ? h("p", {}, text) : null, field, warning,
        h("div", {class: "buttons"},
          h("button", {type: "button", class: "btn", onclick: () => box.close()}, "Cancel"),
          h("button", {type: "submit", class: "btn " + (danger ? "danger" : "primary")}, ok))));
    box.addEventListener("close", () => done(null));
    atelier.modal(box);
    if (field) field.select();
  });

  /** Ask what a button asks before it acts (`sure` in markup.py). */
  atelier.sure = ({ariaLabel, textContent, dataset}) => atelier.dialog({title: `${ariaLabel || textContent.trim()}?`, text: dataset.sure, ok: textContent.trim(), danger: true});

  /** The message panel over the page, which it does not push: errors stay until closed. Others belong to their tab, and go by
      themselves unless they list something to read or offer a file. One with the id of the last one is not shown again. */
  const SECONDS = {info: 10, done: 5, success: 5, place: 8, undo: 20};  // how long a message that need not be read stays
  let sayTimer = 0, lastSaid = "", lastAt = 0;
  atelier.say = (said) => {
    const panel = atelier.byId("said");
    /* A message of the server that was shown or overtaken by a newer one is dropped, also where one of the page has come since. */
    if (!panel || !said || (said.id && said.id === lastSaid) || (said.at && said.at <= lastAt)) return;
    lastSaid = said.id;
    lastAt = said.at || lastAt;
    if (said.kind === "over") { if (panel.classList.contains("error")) panel.hidden = true; return; }
    clearTimeout(sayTimer);
    atelier.seatMessages();
    const kind = said.kind || "info", listed = said.problems && said.problems.length;
    const here = said.go && said.go === atelier.openTab();
    const place = said.go && !here && askedOn !== atelier.openTab() ? [`#${said.go}`, `Open ${said.go}`] : said.open;
    const undo = said.undo ? () => atelier.act("undo") : said.undo_by ? () => atelier.command(said.undo_by, {ask: atelier.ask()}) : null;
    panel.className = `said ${kind}`;
    panel.replaceChildren(
      h("div", {class: "words", role: kind === "error" ? "alert" : null}, said.title ? h("strong", {}, said.title) : null, said.text ? h("span", {}, said.text) : null,
        said.notes && said.notes.length ? h("ul", {class: "notes"}, said.notes.map((note) => h("li", {}, note))) : null,
        listed ? [atelier.problems(said.problems), ...atelier.remedies(said.problems)] : null),
      ...(said.link ? [h("a", {class: "btn primary", href: said.link[0], download: said.link[1]}, `Download ${said.link[1]}`)] : []),
      ...(place ? [h("a", {class: "btn", href: place[0], target: place[0].startsWith("#") ? null : "_blank", onclick: () => { panel.hidden = true; }}, place[1])] : []),
      ...(undo ? [h("button", {type: "button", class: "btn", onclick: () => { panel.hidden = true; undo(); }}, "Undo")] : []),
      h("button", {type: "button", class: "btn quiet", "aria-label": "Close this message", onclick: () => { panel.hidden = true; }}, "Close"));
    Object.assign(panel.dataset, {undo: said.undo || "", about: said.about || ""});
    panel.hidden = false;
    if (kind !== "error") atelier.hear(panel.firstChild.innerText);  // without its buttons
    atelier.byId("said-place").removeAttribute("style");  // the place of the message before
    if (said.go && !place && atelier.goTo(said.go)) { if (said.go === "Monitor" && atelier.chooseRun) atelier.chooseRun(""); scrollTo(0, 0); }
    aside();
    setTimeout(() => aside(), 300);  // another tab may be open by then
    const stays = kind === "error" || said.link || listed || (said.notes && said.notes.length);
    panel.toggleAttribute("data-passes", kind !== "error");
    if (!stays) sayTimer = setTimeout(() => { panel.hidden = true; }, 1000 * SECONDS[undo ? "undo" : place ? "place" : kind]);
  };
  atelier.complain = (problems, title, about) => atelier.say({kind: "error", title, problems, about});
  /** Close the message about something that has succeeded since. */
  atelier.succeeded = (about) => { const panel = atelier.byId("said"); if (panel.dataset.about === about) panel.hidden = true; };
  document.addEventListener("click", ({target, isTrusted}) => {  // what passes was about the tab that is left
    const panel = isTrusted && target.closest && target.closest("[role=tab]") && atelier.byId("said");
    if (panel && panel.hasAttribute("data-passes")) panel.hidden = true;
  });
  /** Where a message stands: in the first free place from the bottom right upwards. An error keeps off the fields that it marks, the
      buttons that begin something and the page's head, and where it can off those of an image or a dialog; others keep off all fields, and off all buttons and text too where the window has room. */
  const KEPT = "#start, #gen-draw, #header-stop, #atelier-header, #tabs > .tab-wrapper, [aria-invalid=true]";
  const IMAGE_BUTTONS = ".gen-does, dialog[open] :is(a, button)";
  const TEXT = "p, h2, h3, h4, li, td, th, dt, dd, figcaption, summary";
  const FIELDS = `.field, .form, label, textarea, input, select, ${KEPT}`;
  const aside = (stands) => {  // one that stands already leaves only what is pressed or filled in, so that its buttons stay where they were seen
    const place = atelier.byId("said-place"), panel = atelier.byId("said"), error = panel.classList.contains("error");
    if (panel.hidden) return;
    place.classList.toggle("aside", !error);
    const kept = [...(error ? [`${KEPT}, ${IMAGE_BUTTONS}`] : [`${FIELDS}, ${atelier.CONTROLS}, ${TEXT}`, `${FIELDS}, ${atelier.CONTROLS}`, FIELDS]), KEPT];
    const freeOf = (kinds) => {
      const taken = [...document.querySelectorAll(kinds)].filter((node) => !place.contains(node)).map((node) => node.getBoundingClientRect())
        .filter((box) => box.width && box.bottom > 0 && box.top < innerHeight);
      return (x, y, width, height) => !taken.some((box) => box.left < x + width && box.right > x && box.top < y + height && box.bottom > y);
    };
    const now = place.getBoundingClientRect();
    if (place.style.top && now.right <= innerWidth && now.bottom <= innerHeight && freeOf(kept[stands && !error ? 1 : 0])(now.x, now.y, now.width, now.height)) return;
    place.removeAttribute("style");
    const {left: x0, width, height} = place.getBoundingClientRect();
    for (const kinds of kept) {
      const free = freeOf(kinds);
      for (let y = innerHeight - height - 12; y > 0; y -= 12)
        for (let x = Math.max(x0, 12); x >= 12; x -= 24)
          if (free(x, y, width, height)) return Object.assign(place.style, {left: `${x}px`, top: `${y}px`, right: "auto", bottom: "auto"});
    }
  };
  addEventListener("scroll", () => requestAnimationFrame(() => aside(true)), {capture: true, passive: true});
  addEventListener("resize", () => { atelier.byId("said-place").removeAttribute("style"); aside(); });  // in a wider window the place of before is its middle

  parts.said = (said) => { atelier.say(said); if (said && said.kind === "error") for (const back of pressed) back(); };

  /* ---- light and dark ---- */

  let chosenTheme = atelier.recall("atelier-theme");
  const wanted = () => chosenTheme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  const dress = () => {
    document.documentElement.dataset.theme = wanted();
    if (!document.body) return;
    document.body.classList.toggle("dark", wanted() === "dark");
    const button = atelier.byId("theme-toggle");
    if (button) { atelier.text(button, wanted() === "dark" ? "Light" : "Dark"); button.title = `Change to ${wanted() === "dark" ? "light" : "dark"} colors`; }
    document.dispatchEvent(new Event("atelier-theme"));
  };
  atelier.on("click", "#theme-toggle", () => {
    chosenTheme = wanted() === "dark" ? "light" : "dark";
    atelier.remember("atelier-theme", chosenTheme);
    dress();
  });
  atelier.on("click", "#log-out", async () => { await fetch("atelier/logout", {method: "POST"}); location.reload(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", dress);

  dress();

  /* ---- begin ---- */

  const ready = [];
  /** `work` runs once the page's widgets stand. */
  atelier.whenReady = (work) => ready.push(work);
  /* What lies under the message panel can be scrolled out from below it, and what the keyboard reaches is never below it. */
  const roomBelow = () => {
    const page = document.documentElement, high = Math.ceil(atelier.byId("said-place").offsetHeight), now = parseFloat(page.style.getPropertyValue("--said")) || 0;
    if (high < now && scrollY + innerHeight > page.scrollHeight - now + high) addEventListener("scroll", roomBelow, {once: true, passive: true});  // at the end of the page it would move all
    else page.style.setProperty("--said", `${high}px`);
  };
  atelier.whenReady(() => new ResizeObserver(roomBelow).observe(atelier.byId("said-place")));
  const begin = () => {
    if (!document.querySelector("#atelier-header") || !tabButtons().length) return setTimeout(begin, 30);
    document.title = "Atelier";
    dress();
    atelier.attach();
    for (const work of ready) work();
    follow();
    new MutationObserver(() => { atelier.tabOpened(); atelier.keepAddress(); }).observe(document.querySelector("#tabs > .tab-wrapper"), {subtree: true, attributeFilter: ["aria-selected"]});
    setInterval(() => { atelier.attach(); atelier.keepAddress(); onTheirWay(); }, 500);
    opening();
    filling();
  };
  /** The frame is shown once the tab of the address is open in it. */
  const opening = () => {
    atelier.keepAddress();
    if (bound) return setTimeout(opening, 15);
    document.body.dataset.atelier ||= "open";
  };
  /* A page that comes back after the server was away has the server's values: what was typed meanwhile is named. */
  const UNSAVED = "atelier-unsaved";
  addEventListener("pagehide", () => { const left = [...unsaved.values(), ...lost.values()]; if (left.length) atelier.remember(UNSAVED, JSON.stringify(left.flatMap(Object.entries)), true); });
  const tellUnsaved = () => {
    const left = JSON.parse(atelier.recall(UNSAVED, true) || "[]");
    atelier.remember(UNSAVED, "", true);
    nameUnsaved(left, "Not saved", "The server could not be reached when you changed", "Enter it again.");
  };
  /* What is typed before the server has filled the form would be overwritten: until then it takes nothing. */
  let asked = Date.now();
  const filling = () => {
    if (!atelier.stamp) {
      if (Date.now() > asked + LOST) { asked = Date.now(); atelier.refill(); }
      return setTimeout(filling, 30);
    }
    setTimeout(() => { document.body.dataset.atelier = "ready"; tellUnsaved(); }, 60);
  };
  /* The second click of a double click on Start is no second start, however late it is answered. */
  document.addEventListener("click", (event) => {
    if (event.detail > 1 && event.target.closest && event.target.closest("#start, #enqueue")) event.stopImmediatePropagation();
  }, true);
  if (document.readyState === "loading") addEventListener("DOMContentLoaded", begin); else begin();
})();
