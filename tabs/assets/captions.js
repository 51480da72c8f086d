"use strict";
/* The Captions tab. The browser holds the captions around the open one, each image with its own text, so that moving on waits for
   nobody and no answer lands in another image's text. A save names the image, the text, and the texts it was typed over; whatever the
   server read before the last keystroke or save of an image is dropped. Texts that are not saved yet also lie in the browser's storage. */
(() => {
  const atelier = window.atelier, {h, text, attr, show, byId} = atelier;
  const BATCH = 50;         // texts in one message
  const IDLE = 4000;        // milliseconds without a key after which a text is saved
  const RETRY = 4000;       // until a save that failed is tried again
  const FIND = 90;          // milliseconds without a key after which the list follows what is typed
  const PAUSE = 3000;       // without a key: nobody is typing now
  const NEAR = 60;          // captions left on one side when more are asked for
  const HELD = 1000;        // images whose captions are kept here
  const ORPHAN = 20000;     // age of a draft that a closed window left
  const DRAFT = "atelier-caption ";
  const items = new Map();  // key -> {key, name, text, saved, base, maybe, ...}, see `known`
  let open = "", chain = [], at = -1, ring = false, listed = [];
  let clock = 0, moved = 0; // one count for all that is typed, opened, sent and answered here; `moved`: last typed or opened
  let acted = 0, arrived = 0;  // the same count when a person last typed or chose a caption, and when they last clicked outside of the tab
  let stamp = "", newest = 0, asking = 0, said = "", composing = false, begun = false, lastKey = 0;
  const timers = {};

  const token = () => crypto.getRandomValues(new Uint32Array(2)).join("-");
  const plain = (words) => words.replace(/\r\n?/g, "\n").trim();
  const box = () => byId("cap-text");
  const dirty = (item) => item.text !== item.saved;
  const stuck = (item) => item.conflict !== undefined || !!item.failed;
  const after = (name, milliseconds, work) => { clearTimeout(timers[name]); timers[name] = setTimeout(work, milliseconds); };

  /** What is known of an image.
      text     in the box, now or when it was last open        saved    the text that was last read from the server or saved
      base     what the disk held then                         maybe    texts that were sent since; one of them may be there
      touched  when it was last typed, sent or answered        conflict   another text that a save met, until one is chosen
      visit    one showing: one undo takes it back             failed   why the last save came to nothing
      stepped  the visit that was last saved                   refused  whether the server will not write it
      wants    whether a save waits                           sending  whether one is on its way */
  const known = (key, words = "") => {
    if (!items.has(key)) items.set(key, {key, name: "", text: words, saved: words, base: words, maybe: [], touched: 0, visit: token(), sending: false, wants: false});
    return items.get(key);
  };

  const post = (asked, more) => atelier.request("captions", asked, more);
  const unanswered = (error) => atelier.complain([{what: `The server does not answer (${error.message})`, where: "", fix: "try again"}]);
  /* What the server keeps of a list or a form: its questions go one after the other, or a slow one would undo the next. */
  const LINES = {find: "list", show: "list", sort: "list", page: "list", bulk: "bulk", bulk_field: "bulk", scores: "scores", scores_field: "scores"};
  const lines = {};
  const ask = (asked, more) => {
    const line = LINES[asked.act] || (asked.act.startsWith("preset_") ? "bulk" : "");
    return line ? lines[line] = Promise.resolve(lines[line]).catch(() => {}).then(() => post(asked, more)) : post(asked, more);
  };

  /* ---- texts that are not saved yet ---- */

  const writer = token();
  const mine = atelier.recall("atelier-window", true);
  let last = location.hash.startsWith("#Captions") ? atelier.recall("atelier-caption", true) : "";  // `last`: the image that a refresh closed; every question asks for it until one is open
  atelier.remember("atelier-window", writer, true);
  const draftName = (item) => `${DRAFT}${writer} ${item.key}`;
  const keepDraft = (item) => {
    try {
      if (!dirty(item)) localStorage.removeItem(draftName(item));
      else localStorage.setItem(draftName(item), JSON.stringify({at: Date.now(), name: item.name, text: item.text, over: [item.base, ...item.maybe], visit: item.visit}));
    } catch { /* full or forbidden: the server gets it within seconds all the same */ }
  };
  /** Drafts of this window before a refresh, and of windows that are gone, become texts to save. The closed page may have sent them. */
  const takeDrafts = () => {
    try {
      for (const name of Object.keys(localStorage).filter((each) => each.startsWith(DRAFT))) {
        const [from, key] = name.slice(DRAFT.length).split(" ");
        let draft = null;
        try { draft = JSON.parse(localStorage.getItem(name)); } catch { /* not ours */ }
        if (from === writer || (draft && from !== mine && Date.now() - draft.at < ORPHAN)) continue;
        localStorage.removeItem(name);
        if (!draft || !key || typeof draft.text !== "string" || !Array.isArray(draft.over) || !draft.over.length || (items.has(key) && dirty(items.get(key)))) continue;
        const item = known(key, String(draft.over[0]));
        Object.assign(item, {name: draft.name || "", text: draft.text, saved: null, base: String(draft.over[0]), maybe: [...draft.over.slice(1), draft.text], visit: draft.visit || token(), touched: ++clock});
        keepDraft(item);
        save(item);
      }
    } catch { /* no storage */ }
  };

  /* ---- saving ---- */

  const message = (item) => ({key: item.key, text: item.text, over: [item.base, ...item.maybe], visit: item.visit});

  /** Save an image's text if it is not saved. One message at a time carries all that waits: what comes later is never first. */
  const save = (item) => {
    if (!item || item.fixed || item.conflict !== undefined || !dirty(item)) return;
    item.wants = true;
    send();
  };
  let sending = false;
  const send = async () => {
    const batch = sending ? [] : [...items.values()].filter((item) => item.wants).slice(0, BATCH);
    if (!batch.length) return;
    sending = true;
    const saves = batch.map(message);
    for (const item of batch) { if (!item.maybe.includes(item.text)) item.maybe.push(item.text); Object.assign(item, {sending: true, wants: false, touched: ++clock}); }
    paintState();
    let answers, lost = "";
    try {
      const answer = await ask({act: "save", saves});
      answers = answer.answers;
      if (!answers) lost = answer.problems[0].what;
    } catch (error) { lost = String(error.message || error); }
    sending = false;
    batch.forEach((item, n) => {
      Object.assign(item, {sending: false, touched: ++clock});
      saved(item, saves[n].text, lost ? {lost} : answers[n]);
    });
    paintState();
    send();
  };
  const saved = (item, sent, answer) => {
    const before = item.failed;
    item.failed = answer.problems ? answer.problems[0].what : answer.lost ? "the server does not answer" : answer.unknown === false ? "the folder is being loaded"
      : answer.unknown ? "the image is not in the chosen folder; the text is saved when the folder is chosen again" : "";
    item.refused = !!answer.problems;
    if (item.refused && item.failed !== before) atelier.complain(answer.problems);
    if (item.failed) { item.wants = false; keepDraft(item); if (answer.unknown !== true) after(`retry ${item.key}`, RETRY, () => save(item)); return; }
    if (answer.conflict !== undefined) { Object.assign(item, {conflict: answer.conflict, wants: false}); keepDraft(item); return; }
    Object.assign(item, {base: answer.disk, maybe: [], saved: sent});
    if (answer.wrote) Object.assign(item, {words: "", stepped: item.visit});
    if (item.closes) Object.assign(item, {closes: false, visit: token()});  // what was saved by hand is a step of its own
    keepDraft(item);
    if (item.key === open) said = answer.said; else atelier.hear(answer.said);
    paintSteps(answer);
    if (answer.wrote) { shelfSoon(); if (item.key === open) lookSoon(); }
    if (dirty(item) && item.key !== open) save(item);
  };
  const saveOpen = () => {
    const item = items.get(open);
    if (item && (dirty(item) || item.sending)) item.closes = true;
    else if (item && item.stepped === item.visit) item.visit = token();  // leaving the box for the button has saved it
    else if (item) { said = item.words !== undefined && !item.text ? "Nothing to save: the caption is empty" : "Nothing to save: no changes"; paintState(); }
    save(item);
  };
  /** Wait until nothing is on its way; what cannot be saved is not waited for. */
  const quiet = async () => {
    for (let waited = 0; waited < 20000 && (sending || [...items.values()].some((item) => item.wants)); waited += 25) await new Promise((done) => setTimeout(done, 25));
  };
  const saveAll = () => { for (const item of items.values()) if (dirty(item)) save(item); };
  /** Give up a text that may not be saved, as in a read-only folder. */
  const discard = async () => {
    const item = items.get(open);
    if (!item || !(await atelier.dialog({title: "Discard this text?", text: "The caption is shown as it is on the disk.", ok: "Discard"}))) return;
    await quiet();
    if (!item.failed) return;  // it could be saved after all
    Object.assign(item, {text: item.base, saved: item.base, maybe: [], failed: "", refused: false, touched: ++clock});
    said = "Discarded";
    keepDraft(item);
    if (item.key === open) { putText(item); lookSoon(); }
    paintState();
  };
  const choose = async (mineStays) => {
    const item = items.get(open);
    if (!item || item.conflict === undefined) return;
    const conflict = item.conflict;
    if (!mineStays) {  // what was typed is kept by the server before it leaves the box
      let answer;
      try { answer = await ask({act: "give_up", key: item.key, value: item.text}); } catch (error) { answer = {problems: [{what: `The server does not answer (${error.message})`, where: "", fix: "try again"}]}; }
      if (answer.problems) return atelier.complain(answer.problems);
      if (item.conflict === undefined) return;
      said = "The other is used; Undo restores yours";
      paintSteps(answer);
    }
    Object.assign(item, {base: conflict, maybe: [], conflict: undefined, visit: token(), touched: ++clock});
    if (mineStays) { item.saved = null; save(item); }
    else { item.text = item.saved = conflict; keepDraft(item); putText(item); lookSoon(); }
    paintState();
  };

  /* ---- the open image ---- */

  /** Open an image at once: its text, its image and its notes are here. The box is a new one, so that the browser's own undo
      never brings back another image's words. */
  const turn = (key) => {
    const item = items.get(key), old = items.get(open), before = box();
    if (!item || item.stage === undefined || !before) return false;
    if (old && old !== item) save(old);
    if (!dirty(item) && !item.sending) item.visit = token();
    if (old !== item) said = "";
    open = key;
    last = "";
    moved = ++clock;
    atelier.remember("atelier-caption", key, true);
    const held = before === document.activeElement;
    const fresh = h("textarea", {id: "cap-text", rows: 5, value: item.text, "data-key": key, spellcheck: "true", placeholder: item.words ? `trained as: ${item.words}` : null, readonly: !!item.fixed, "aria-describedby": "cap-notes"});
    before.replaceWith(fresh);
    if (held) { fresh.focus({preventScroll: true}); fresh.setSelectionRange(item.text.length, item.text.length); }
    paint();
    lookSoon();
    return true;
  };
  const tell = (name) => document.dispatchEvent(new Event(name));
  const putText = (item) => {
    const field = box();
    if (!field || field.dataset.key !== item.key || field.value === item.text) return;
    after("told", 0, () => tell("atelier-caption"));
    const {selectionStart, selectionEnd} = field;
    field.value = item.text;
    if (field === document.activeElement) field.setSelectionRange(selectionStart, selectionEnd);
  };
  const step = (by) => {
    let to = at + by;
    if (ring && chain.length) to = (to + chain.length) % chain.length;
    if (at >= 0 && chain[to] === open) return;
    if (at < 0 || chain[to] === undefined || !items.get(chain[to]) || items.get(chain[to]).stage === undefined) {
      said = "Loading more captions ...";
      paintState();
      return shelfSoon({act: "follow"});
    }
    at = to;
    turn(chain[at]);
    acted = clock;
    preload();
    if (!listed.includes(open) || (!ring && (at < NEAR || at >= chain.length - NEAR))) shelfSoon({act: "follow"});
  };
  const pick = (key) => {
    if (key === open) return;
    const here = chain.indexOf(key);
    if (here >= 0) at = here;
    else if (listed.includes(key)) { chain = listed; ring = false; at = listed.indexOf(key); }
    else at = -1;
    if (!turn(key)) return shelf({act: "follow", key}, true);
    acted = clock;
    preload();
    shelfSoon({act: "follow"});
  };
  /** Ask for the list and the neighbors, one question at a time. */
  let wanted = null, shelving = false;
  const shelfSoon = (asked = {}) => {
    wanted = {...(wanted || {}), ...asked};
    if (!shelving) { shelving = true; setTimeout(askShelf, 100); }
  };
  const askShelf = async () => {
    const asked = wanted;
    wanted = null;
    await shelf(asked);
    shelving = false;
    if (wanted) shelfSoon();
  };
  const preload = () => { for (const by of [1, -1, 2]) { const item = items.get(chain[at + by]); if (item && item.stage && !item.node) stageOf(item); } };
  const stageOf = (item) => {
    if (!item.node) { const holder = document.createElement("div"); holder.innerHTML = item.stage; item.node = holder.firstElementChild; }
    return item.node;
  };

  /* ---- what the server tells ---- */

  /** Take over what the server read of an image, unless it was typed or saved here since it was asked (`then`). */
  const take = (key, fresh, then) => {
    const item = known(key, fresh.disk);
    item.name = fresh.name || item.name;
    if (fresh.fixed !== undefined) item.fixed = fresh.fixed;
    if (fresh.words !== undefined) item.words = fresh.words;
    if (fresh.stage !== undefined && fresh.stage !== item.stage) Object.assign(item, {stage: fresh.stage, node: null});
    if (item.conflict !== undefined && item.touched <= then && item.conflict !== fresh.disk) { item.conflict = fresh.disk; if (key === open) paintState(); }
    if (item.touched > then || dirty(item) || item.sending || (composing && key === open)) return;
    if (fresh.disk !== plain(item.text)) {
      Object.assign(item, {text: fresh.disk, saved: fresh.disk, meter: "", notes: ""});
      putText(item);
      if (key === open && fresh.meter === undefined) lookSoon();
    }
    item.base = fresh.disk;
    if (fresh.meter !== undefined) Object.assign(item, {meter: fresh.meter, notes: fresh.notes});
  };
  /** Ask for the list and the captions around the open image. `moves`: a person asked to be led to what the answer opens, which
      holds until they type or open something. */
  const shelf = async (asked = {}, moves = false, since = moved) => {
    const number = ++asking, then = clock, key = asked.key !== undefined ? asked.key : open || last;
    let answer;
    try { answer = await ask({act: "shelf", ...asked, key}); } catch (error) {
      if (asked.act && asked.act !== "follow" && asked.act !== "open") unanswered(error);
      else if (moves) after("open", RETRY, () => shelf(asked, moves, since));
      else after("shelf", RETRY, () => shelfSoon());
      return;
    }
    if (answer.problems) return atelier.complain(answer.problems);
    for (const [each, fresh] of Object.entries(answer.items)) take(each, fresh, then);
    if (answer.said) said = answer.said;
    if (number < newest) {  // its list is old; where it leads is not
      if (moves && moved <= since && answer.open) pick(answer.open);
      if (at < 0) place(answer);
      return paint();
    }
    newest = number;
    stamp = answer.stamp;
    listed = answer.page;
    own.listed(answer.narrowed);
    paintList(answer);
    arrange(answer, key, moves && moved <= since);
    forget();
    paint();
    preload();
  };
  /** Search the list: one question at a time, for what was typed last. */
  let sought = null, seeking = null;
  const find = (words) => {
    sought = words;
    return seeking ||= (async () => {
      try { while (sought !== null) { const value = sought; sought = null; await shelf({act: "find", value}); } } finally { seeking = null; }
    })();
  };
  /** The chain of the answer around the open image; another image is opened where that was asked for or the open one is gone. */
  const arrange = (answer, asked, leads) => {
    const typing = document.activeElement === box() && Date.now() - lastKey < PAUSE;
    const gone = asked === open && answer.open !== open;
    if (gone && typing) after("shelf", PAUSE, () => shelfSoon());  // the image must not change under what is being typed
    else if (gone || leads || !open) {
      const held = gone && document.activeElement === box();
      if (answer.open) turn(answer.open); else if (open) close();
      if (held) hold();  // by whoever has changed the dataset in another window
    }
    if (!place(answer) && asked !== open) shelfSoon();
  };
  /** Take over the answer's chain if the open image is in it. */
  const place = (answer) => {
    const places = answer.chain.flatMap((key, n) => key === open ? [n] : []);
    if (!places.length) return false;
    chain = answer.chain;
    ring = answer.ring;
    at = places.reduce((best, n) => Math.abs(n - answer.at) < Math.abs(best - answer.at) ? n : best);
    return true;
  };
  /** What is typed on does not go into another image's caption: its box takes nothing until it is chosen. */
  const hold = () => {
    const field = box(), item = items.get(open);
    field.readOnly = true;
    atelier.say({kind: "info", text: "The dataset was changed in another window. Press the caption to edit it."});
    for (const kind of ["pointerdown", "blur"]) field.addEventListener(kind, () => { field.readOnly = !item || !!item.fixed; }, {once: true});
  };
  const close = () => {
    save(items.get(open));
    open = ""; chain = []; at = -1; moved = ++clock;
    box().replaceWith(h("textarea", {id: "cap-text", rows: 5, disabled: true}));
  };
  /** Captions that were looked at long ago and are saved are let go. */
  const forget = () => {
    if (items.size < HELD) return;
    const near = new Set([open, ...chain, ...listed]);
    for (const [key, item] of items) if (!near.has(key) && !dirty(item) && !item.sending) items.delete(key);
  };
  const lookSoon = () => after("look", 100, look);
  let looking = false, lookAgain = false;
  const look = async () => {
    const item = items.get(open), then = clock;
    if (!item) return;
    if (looking) { lookAgain = true; return; }
    looking = true;
    const typed = item.text;
    let answer;
    try { answer = await ask({act: "look", key: item.key, text: typed}); } catch { return; } finally {
      looking = false;
      if (lookAgain) { lookAgain = false; lookSoon(); }
    }
    if (answer.problems || answer.unknown) return;
    if (item.text === typed) Object.assign(item, {meter: answer.meter, notes: answer.notes});
    take(item.key, {disk: answer.disk}, then);
    if (item.key === open) paintNotes(item);
  };
  /** What changes captions on the disk waits until all that was typed is there. */
  const takeBack = async (act, arg, value) => {
    const since = moved, before = said;
    saveAll();
    await quiet();
    await shelf({act, arg, value}, act === "undo" || act === "redo", since);
    if (act !== "undo" && act !== "redo" && said && said !== before) atelier.say({kind: "success", text: said});  // the caption is far above
  };

  /* ---- painting ---- */

  const put = (id, html) => {
    const list = document.querySelector(`#${id} .picks`), {scrollTop = 0, scrollLeft = 0} = list || {};
    atelier.put(byId(id), html);
    const fresh = document.querySelector(`#${id} .picks`);
    if (fresh) Object.assign(fresh, {scrollTop, scrollLeft});
  };
  const paintList = (answer) => {
    put("cap-tally", answer.tally);
    put("cap-picks", answer.list);
    show(byId("cap-controls"), answer.choices.length > 0);
    const select = byId("cap-show");
    if (atelier.differs(select, answer.choices)) select.replaceChildren(...answer.choices.map(([words, value]) => h("option", {value}, words)));
    if (select !== document.activeElement || !select.value) select.value = answer.show;
    if (byId("cap-sort") !== document.activeElement) byId("cap-sort").value = answer.sort;
    if (byId("cap-find") !== document.activeElement) byId("cap-find").value = answer.find;
    text(byId("cap-wrong"), answer.wrong);
    tell("atelier-captions");
    paintSteps(answer);
  };
  const paintSteps = (answer) => {
    for (const [act, words] of [["undo", "Undo the last save"], ["redo", "Repeat"]]) {
      const button = document.querySelector(`#cap-buttons [data-act=${act}]`);
      button.disabled = !answer[act];
      button.title = answer[act] ? `${words}: ${answer[act]}` : "";
    }
  };
  const paint = () => {
    const item = items.get(open);
    if (!box()) return;
    text(byId("cap-label"), item ? `Caption of ${item.name}` : "Caption");
    const stage = byId("cap-stage"), node = item && item.stage ? stageOf(item) : null;
    if (!node) put("cap-stage", '<div class="stage empty-stage"></div>');
    else if (stage.firstElementChild !== node) { delete stage.dataset.html; stage.replaceChildren(node); }
    for (const [act, needs] of [["previous", 2], ["next", 2], ["save", 1]]) document.querySelector(`#cap-buttons [data-act=${act}]`).disabled = !item || new Set(chain).size < needs || (act === "save" && !!item.fixed);
    paintNotes(item);
    paintState();
    paintMarks();
    tell("atelier-caption");
    atelier.showMask(item ? open : "", stamp);
  };
  const paintNotes = (item) => { put("cap-meter", item && item.meter || ""); put("cap-notes", item && item.notes || ""); };
  const paintMarks = () => {
    const list = document.querySelector("#cap-picks .picks");
    if (!list) return;
    const rows = [...list.querySelectorAll(".pick")], stop = rows.find((row) => row.dataset.arg === open) || rows[0];
    for (const row of rows) {
      row.tabIndex = row === stop ? 0 : -1;
      const item = items.get(row.dataset.arg), here = row.dataset.arg === open;
      row.classList.toggle("unsaved", !!item && dirty(item) && stuck(item));
      if (here === (row.getAttribute("aria-current") === "true") && !(here && row.dataset.seen !== open)) continue;
      attr(row, "aria-current", here ? "true" : null);
      if (!here) { delete row.dataset.seen; continue; }
      row.dataset.seen = open;
      const place = row.getBoundingClientRect(), frame = list.getBoundingClientRect();
      if (place.top < frame.top || place.bottom > frame.bottom) list.scrollTop += place.top - frame.top - frame.height / 2 + place.height / 2;
      if (place.left < frame.left || place.right > frame.right) list.scrollLeft += place.left - frame.left - frame.width / 2 + place.width / 2;
    }
  };
  const short = (words) => { const line = words.split(/\s+/).join(" "); return line.length > 300 ? `${line.slice(0, 299)}…` : line; };
  /** A change of many captions that goes on after its answer: its progress, then what became of it, told once. */
  let work = null;
  const follow = (now) => {
    if (!now || !now.id || (now.done && !(work && work.id === now.id))) { work = null; return; }
    work = now.done ? null : now;
    if (now.done && now.problems.length) atelier.complain(now.problems);
    else if (now.done && now.said) atelier.say({kind: "success", text: said = now.said});
    if (now.done) shelfSoon();
    paintState();
  };
  const paintState = () => {
    const item = items.get(open), holder = byId("cap-state");
    if (!holder) return;
    const others = [...items.values()].filter((each) => each.key !== open && dirty(each) && stuck(each));
    const conflict = item && item.conflict;
    const words = !item || !(item.failed || dirty(item)) ? (work ? work.text : said) : item.failed ? `Not saved: ${item.failed}. Your text is kept in this browser.` : item.sending ? "Saving ..." : "Not saved yet";
    if (!atelier.differs(holder, [open, conflict, words, item && item.refused, others.map((each) => [each.key, each.name, each.failed])])) return;
    const unsaved = !!item && dirty(item), give = item && item.refused ? [" ", h("button", {type: "button", class: "link", "data-act": "discard"}, "Discard")] : [];
    holder.replaceChildren(conflict === undefined || !item ? h("div", {class: `save-state${unsaved ? " unsaved" : ""}`, role: "status"}, words, ...give, work ? h("progress", {max: 1, value: work.share, "aria-label": work.text}) : null)
      : h("div", {class: "question", role: "alert"},
        h("span", {}, "Not saved: another window or program changed this caption. ", conflict ? "Its version: " : "Its version is empty.", conflict ? h("q", {}, short(conflict)) : null),
        h("span", {class: "does"}, h("button", {type: "button", class: "btn primary", "data-act": "mine", title: "Saves yours; Undo restores the other"}, "Keep mine"),
          h("button", {type: "button", class: "btn", "data-act": "theirs", title: "Yours stays among the earlier captions; Undo restores it"}, "Use the other"))));
    byId("cap-unsaved").replaceChildren(...(others.length ? [h("div", {class: "question", role: "alert"},
      h("span", {}, `${others.length === 1 ? "Another caption is" : `${others.length} other captions are`} not saved. Open to see why: `,
        others.map((each) => h("button", {type: "button", class: "link", "data-act": "pick", "data-arg": each.key}, each.name || "image")).flatMap((each, n) => n ? [", ", each] : [each])))] : []));
    paintMarks();
  };

  /* ---- what a person does ---- */

  const acts = {
    previous: () => step(-1), next: () => step(1), save: saveOpen, mine: () => choose(true), theirs: () => choose(false), discard,
    undo: () => takeBack("undo"), redo: () => takeBack("redo"), pick: (arg) => pick(arg), find: (arg, value) => find(value), bulk_apply: async (mark) => { atelier.say({kind: "over"}); await takeBack("bulk_apply", atelier.captions.selected(), mark); tell("atelier-captions"); }, revert: (arg) => takeBack("revert", arg), utf8: () => takeBack("utf8"),
  };
  const own = {};           // acts of caption_tools.js
  atelier.captions = {next: () => step(1), ask, unanswered, put: (...given) => put(...given), own, key: () => open, box, filter: (words) => { byId("cap-find").value = words; return find(words); }};
  const act = (name, arg, value) => own[name] ? own[name](arg, value) : acts[name] ? acts[name](arg, value) : shelf({act: name, arg, value});
  const visible = () => { const main = byId("cap-main"); return !!main && main.offsetParent !== null; };
  atelier.on("click", ":is(#captions, #cap-more) button[data-act]", async (button) => {
    const {dataset} = button, from = dataset.from && byId(dataset.from);
    if (!button.disabled && (!dataset.sure || await atelier.sure(button))) act(dataset.act, dataset.arg || "", from ? from.value : "");
  });
  atelier.on("change", ":is(#captions, #cap-more) :is(select, input, textarea)[data-act]", ({dataset, type, checked, value}) =>
    act(dataset.act, dataset.arg || "", type === "checkbox" ? String(checked) : value));
  document.addEventListener("input", (event) => {
    if (event.target.id === "cap-find") after("find", FIND, () => find(event.target.value));
    const item = event.target.id === "cap-text" && items.get(event.target.dataset.key);
    if (!item) return;
    item.text = event.target.value;
    item.touched = moved = acted = ++clock;
    lastKey = Date.now();
    keepDraft(item);
    paintState();
    lookSoon();
    tell("atelier-caption");
    after("idle", IDLE, () => save(item));
  });
  for (const [kind, is] of [["compositionstart", true], ["compositionend", false]]) document.addEventListener(kind, (event) => { if (event.target.id === "cap-text") composing = is; });
  document.addEventListener("focusout", (event) => { if (event.target.id === "cap-text") save(items.get(event.target.dataset.key)); });
  document.addEventListener("keydown", (event) => {
    if (!visible() || document.querySelector("dialog[open]")) return;
    const control = event.ctrlKey || event.metaKey;
    const arrow = {ArrowLeft: "previous", ArrowUp: "previous", ArrowRight: "next", ArrowDown: "next"}[event.key];
    const busy = event.target.closest("input, textarea, select, [contenteditable=true], [role=radio], [role=listbox], [role=tab]");
    const sideways = event.key === "ArrowLeft" || event.key === "ArrowRight";
    let name = "";
    if (control && !event.altKey && !event.shiftKey && event.key.toLowerCase() === "s") name = "save";
    else if (arrow && event.altKey && (busy || !sideways) && !control && !event.shiftKey) name = arrow;  // else Alt+Left is Back
    else if (sideways && !busy && event.target.matches("body, #cap-main *") && !event.altKey && !control && !event.shiftKey && !event.target.closest(".chips")) name = arrow;
    else if (control && !event.altKey && !busy && ["z", "y"].includes(event.key.toLowerCase())) name = event.key.toLowerCase() === "y" || event.shiftKey ? "redo" : "undo";
    if (!name) return;
    event.preventDefault();
    if (!event.repeat || name !== "save") acts[name]();
  });
  document.addEventListener("visibilitychange", () => { if (document.hidden) saveAll(); else if (visible()) lookSoon(); });
  /* The page closes: what is not saved is sent once more without waiting; if that fails too, the draft is saved at the next visit. */
  addEventListener("pagehide", () => {
    const saves = [...items.values()].filter((item) => dirty(item) && item.conflict === undefined).map(message);
    if (saves.length) ask({act: "save", saves}, {keepalive: true}).catch(() => {});
  });

  const begin = () => { if (!begun) { begun = true; takeDrafts(); } };
  document.addEventListener("click", () => { if (!visible()) arrived = clock; }, true);
  /** The tab is opened: the disk is read again, and the image that was chosen elsewhere is opened, unless the keys were quicker. */
  atelier.showCaptions = () => {
    if (!byId("captions")) return setTimeout(atelier.showCaptions, 30);
    begin();
    shelf({act: "open", key: acted > arrived ? open : last}, acted <= arrived);
  };
  /** An image that Dataset opens has its caption in view, and by keyboard the focus. */
  atelier.on("click", "#ds-grid [data-act=open]", async ({ariaLabel}, {detail}) => {
    const field = await atelier.whenFound(() => visible() && ariaLabel.endsWith(byId("cap-label").textContent.replace(/^C/, "c")) && document.querySelector("#cap-text:enabled"));
    if (!field) return;
    field.scrollIntoView({block: "center"});
    if (!detail) setTimeout(() => box().focus({preventScroll: true}), 100);  // the tab's heading has it first
  });
  atelier.parts.captions = (data) => {
    if (!byId("captions")) { delete atelier.have.captions; return; }  // the tab is being built
    begin();
    follow(data.work);
    if (data.stamp !== stamp) shelfSoon();
    else paint();
  };
})();
