"use strict";
/* The prompt box of the Generate tab: token counts and faults while typing, completion, weights by Ctrl+Up and Ctrl+Down, history.
   The server replaces the fields at every change, which removes what is painted here: `paint` restores it. Answers that
   come late are dropped. */
(() => {
  const atelier = window.atelier, {h, byId} = atelier;
  const NAMES = {"gen-prompt": "prompt", "gen-negative_prompt": "negative_prompt"};
  const SOON = 300, COMPLETE = 120, MARKED = 20000, LIST = 280;  // milliseconds; characters up to which faults are underlined in the text; pixels of a completion
  const states = {};  // id of a field -> {text, meter, marks, asked}
  const timers = {};
  const after = (name, milliseconds, work) => { clearTimeout(timers[name]); timers[name] = setTimeout(work, milliseconds); };
  const state = (id) => states[id] ||= {text: null, meter: "", marks: [], asked: 0};
  const isPrompt = (node) => !!node && node.id in NAMES;
  const ask = (asked) => atelier.request("prompt", asked);

  /* ---- token counts and faults ---- */

  const look = async (id) => {
    const field = byId(id), own = state(id), number = ++own.asked;
    if (!field) return;
    const text = field.value;
    let answer;
    try { answer = await ask({act: "look", name: NAMES[id], text}); } catch { return; }
    if (answer.problems) Object.assign(answer, {meter: "", marks: answer.problems.map((each) => ({...each, start: 0, end: text.length}))});
    if (number !== own.asked || !answer.marks || !byId(id) || byId(id).value !== text) return;  // late: the text has changed
    Object.assign(own, {text, meter: answer.meter, marks: answer.marks, settings: Boolean(answer.settings)});
    paint(id);
  };
  /** [characters that two texts share at the begin, at the end] */
  const common = (old, now) => {
    let begin = 0, end = 0;
    const most = Math.min(old.length, now.length);
    while (begin < most && old[begin] === now[begin]) begin += 1;
    while (end < most - begin && old[old.length - 1 - end] === now[now.length - 1 - end]) end += 1;
    return [begin, end];
  };
  /** The marks after an edit: those behind it move with their words, those within it go. */
  const moved = (marks, old, now) => {
    const [begin, end] = common(old, now), by = now.length - old.length;
    return marks.flatMap((mark) => mark.end <= begin ? [mark] : mark.start >= old.length - end ? [{...mark, start: mark.start + by, end: mark.end + by}] : []);
  };
  const follow = (field) => {
    const own = state(field.id);
    if (own.text === null) own.text = "";
    if (own.text === field.value) return;
    Object.assign(own, {marks: moved(own.marks, own.text, field.value), text: field.value});
  };
  const pick = (field, mark) => { field.focus(); field.setSelectionRange(mark.start, mark.end); };
  const markButton = (field, mark) => h("button", {type: "button", class: `prompt-fault ${mark.level}`, title: `${mark.what}. Fix: ${mark.fix}`, onclick: () => pick(field, mark)}, `${mark.what}: ${mark.fix}`);

  /** What A1111's arrow does: a pasted text of an image becomes prompts and settings. */
  const settingsButton = (field) => h("button", {type: "button", class: "btn small primary", "data-act": "read_text", "data-from": field.id}, "Use the settings in this text");

  const paint = (id) => {
    const field = byId(id), box = field && field.closest(".prompt-box");
    if (!box) return;
    const own = state(id), strip = box.querySelector(".prompt-strip"), under = box.querySelector(".prompt-under");
    const key = JSON.stringify([own.meter, own.marks, own.settings]);
    if (strip.dataset.painted !== key || !strip.firstChild) {
      strip.dataset.painted = key;
      const first = own.marks.find((mark) => mark.level === "error") || own.marks[0], more = own.marks.filter((mark) => mark !== first);
      strip.replaceChildren(...[
        h("span", {class: "prompt-meter", id: `${id}-meter`, title: "Tokens in each window of 75"}, own.meter ? `${own.meter} tokens` : ""),
        h("span", {class: "prompt-said", id: `${id}-said`, "aria-live": "polite"}, own.settings ? settingsButton(field) : first ? markButton(field, first) : null),
        more.length ? h("details", {class: "menu"}, h("summary", {class: "btn quiet"}, `and ${more.length} more`), h("div", {class: "menu-items"}, more.map((mark) => markButton(field, mark)))) : null].filter(Boolean));
      field.setAttribute("aria-describedby", `${id}-meter ${id}-said`);
      if (own.marks.some((mark) => mark.level === "error")) field.setAttribute("aria-invalid", "true"); else field.removeAttribute("aria-invalid");
    }
    const text = field.value, words = `${own.text === text ? key : ""} ${text}`;
    if (under.dataset.painted !== words || !under.firstChild) {
      under.dataset.painted = words;
      under.replaceChildren(...parts(text, own.text === text && text.length <= MARKED ? own.marks : []));
    }
    place(field, under);
  };
  /** The text with its faults underlined. */
  const parts = (text, marks) => {
    if (text.length > MARKED) return [document.createTextNode("")];
    const found = [];
    let at = 0;
    for (const mark of marks) {
      if (mark.start < at) continue;
      found.push(text.slice(at, mark.start), h("u", {class: mark.level}, text.slice(mark.start, mark.end)));
      at = mark.end;
    }
    return [...found, `${text.slice(at)}\u200b`].map((part) => typeof part === "string" ? document.createTextNode(part) : part);
  };
  const COPIED = ["font", "letterSpacing", "wordSpacing", "textIndent", "paddingTop", "paddingLeft", "paddingBottom", "paddingRight", "borderTopWidth", "borderLeftWidth"];
  /** Lay the underlines over the field's text, at its size and scrolled as it is. */
  const place = (field, under) => {
    const style = getComputedStyle(field), outer = under.offsetParent && under.offsetParent.getBoundingClientRect(), rect = field.getBoundingClientRect();
    if (!outer || !rect.width) return;
    for (const name of COPIED) under.style[name] = style[name];
    under.style.lineHeight = style.lineHeight;
    Object.assign(under.style, {left: `${rect.left - outer.left}px`, top: `${rect.top - outer.top}px`, width: `${field.clientWidth + parseFloat(style.borderLeftWidth)}px`, height: `${field.clientHeight + parseFloat(style.borderTopWidth)}px`});
    under.scrollTop = field.scrollTop;
  };
  const underOf = (field) => field.closest(".prompt-box").querySelector(".prompt-under");

  /* ---- the server replaces the fields ---- */

  let stylesOpen = false;
  const refresh = () => {
    for (const id of Object.keys(NAMES)) {
      const field = byId(id), own = state(id), box = field && field.closest(".prompt-box");
      if (!box) continue;
      sizes.observe(field);
      const recount = own.counted !== (own.counted = box.dataset.counted);
      if (own.text !== field.value || recount) { follow(field); after(`look ${id}`, SOON, () => look(id)); }
      paint(id);
    }
    const styles = byId("gen-styles");
    if (styles && stylesOpen && !styles.open) styles.open = true;
  };
  const sizes = new ResizeObserver((all) => { for (const {target} of all) if (target.isConnected) place(target, underOf(target)); });
  let watched = null;
  new MutationObserver(() => {
    const board = byId("gen-prompts");
    if (!board || board === watched) return;
    watched = board;
    new MutationObserver(refresh).observe(board, {childList: true, subtree: true, attributes: true, attributeFilter: ["open", "data-painted"]});
    refresh();
  }).observe(document, {childList: true, subtree: true});
  const closeStyles = () => { stylesOpen = false; const styles = byId("gen-styles"); if (styles) styles.open = false; };
  document.addEventListener("click", ({target}) => {
    if (!target.closest) return;
    if (target.closest("#gen-styles > summary")) stylesOpen = !byId("gen-styles").open;
    else if (stylesOpen && !target.closest("#gen-styles")) closeStyles();
  });
  document.addEventListener("keydown", ({key, target}) => {
    if (key !== "Escape" || !target.closest || !target.closest("#gen-styles")) return;
    closeStyles();
    byId("gen-styles").querySelector("summary").focus();
  });
  document.addEventListener("scroll", ({target}) => { if (isPrompt(target)) underOf(target).scrollTop = target.scrollTop; }, true);
  document.addEventListener("focusin", ({target}) => { if (isPrompt(target)) after(`look ${target.id}`, SOON, () => look(target.id)); });

  /* ---- editing so that the browser's undo keeps working ---- */

  let silent = false;
  const edit = (field, start, end, words) => {
    const old = field.value.slice(start, end);
    if (old === words) return;
    field.focus();
    field.setSelectionRange(start, end);
    silent = true;
    const done = words.length < MARKED && document.execCommand(words ? "insertText" : "delete", false, words || undefined);
    silent = false;
    if (!done) { field.setRangeText(words, start, end, "end"); field.dispatchEvent(new Event("input", {bubbles: true})); }
  };
  /** Set another text by replacing only what differs. */
  const change = (field, text, start, end) => {
    const old = field.value, [begin, rest] = common(old, text);
    edit(field, begin, old.length - rest, text.slice(begin, text.length - rest));
    field.setSelectionRange(start, end);
  };

  /* ---- weights, as A1111's Ctrl+Up and Ctrl+Down ---- */

  const STOPS = ".,\\/!?%^*;:{}=`~() \t\r\n";
  /** The words within the brackets around the caret, without their weight; null outside of brackets. */
  const within = (text, caret, open, close) => {
    const before = text.lastIndexOf(open, caret - 1), behind = text.indexOf(close, caret);
    if (caret < 1 || before < 0 || behind < 0 || text.slice(before + 1, caret).includes(close) || text.slice(caret, behind).includes(open)) return null;
    const inside = text.slice(before + 1, behind), weight = /:\s*[-+]?[\d.]+\s*$/.exec(inside);
    return [before + 1, before + 1 + (weight ? weight.index : inside.length)];
  };
  const word = (text, caret) => {
    let start = caret, end = caret;
    while (start > 0 && !STOPS.includes(text[start - 1])) start -= 1;
    while (end < text.length && !STOPS.includes(text[end])) end += 1;
    return [start, end];
  };
  const written = (weight) => Number.isInteger(weight) ? `${weight}.0` : String(weight);
  const weigh = (field, up) => {
    let text = field.value, start = field.selectionStart, end = field.selectionEnd;
    const inTag = text[start - 1] === ">" ? start - 1 : start;  // completion leaves the caret right after a tag
    if (start === end) [start, end] = within(text, inTag, "<", ">") || within(text, start, "(", ")") || within(text, start, "[", "]") || word(text, start);
    else { while (end > start && text[end - 1] === " ") end -= 1; while (start < end && text[start] === " ") start += 1; }
    if (start === end) return;
    const extra = text[start - 1] === "<", close = extra ? ">" : ")", step = extra ? 0.05 : 0.1;
    if (extra) {
      if (text[end] !== ":") text = `${text.slice(0, end)}:1.0${text.slice(end)}`;
    } else if ("([".includes(text[start - 1] || " ") && text[end] === (text[start - 1] === "(" ? ")" : "]")) {  // ((word)) and [word] as numbers
      const open = text[start - 1], shut = text[end];
      let depth = 1;
      while (text[start - depth - 1] === open && text[end + depth] === shut) depth += 1;
      const weight = Math.round((open === "(" ? 1.1 : 1 / 1.1) ** depth * 10) / 10;
      text = `${text.slice(0, start - depth)}(${text.slice(start, end)}:${written(weight)})${text.slice(end + depth)}`;
      [start, end] = [start - depth + 1, end - depth + 1];
    } else if (text[start - 1] !== "(" || text[end] !== ":") {
      text = `${text.slice(0, start)}(${text.slice(start, end)}:1.0)${text.slice(end)}`;
      [start, end] = [start + 1, end + 1];
    }
    const last = text.indexOf(close, end), now = parseFloat(text.slice(end + 1, last));
    if (last < 0 || Number.isNaN(now)) return;
    const weight = parseFloat((now + (up ? step : -step)).toPrecision(12));
    if (!extra && weight === 1) change(field, text.slice(0, start - 1) + text.slice(start, end) + text.slice(last + 1), start - 1, end - 1);
    else change(field, `${text.slice(0, end + 1)}${written(weight)}${text.slice(last)}`, start, end);
  };

  /* A field that has the focus is not redrawn, but an image whose settings are read fills in the prompts too. */
  for (const name of ["drop", "change"]) document.addEventListener(name, ({target}) => {
    const zone = target.closest && target.closest("#gen-drop"), button = zone && zone.querySelector("button");
    if (button && isPrompt(document.activeElement)) button.focus({preventScroll: true});
  }, true);

  /* ---- completion ---- */

  let options = [], chosen = -1, question = 0, target = null, taken = 0;
  const list = h("ul", {id: "prompt-options", role: "listbox", "aria-label": "Suggestions", hidden: true});
  const close = () => { options = []; chosen = -1; question += 1; paintOptions(); };
  const paintOptions = () => {
    if (!list.isConnected) document.body.append(list);
    list.hidden = !options.length;
    list.replaceChildren(...options.map((each, n) => h("li", {id: `prompt-option-${n}`, role: "option", "aria-selected": n === chosen ? "true" : "false", "data-n": n}, h("b", {}, each.name), each.alias ? h("i", {}, ` ${each.alias}`) : null, h("span", {}, each.about))));
    if (!target) return;
    if (options.length) { target.setAttribute("aria-autocomplete", "list"); target.setAttribute("aria-controls", "prompt-options"); }
    if (chosen >= 0) { target.setAttribute("aria-activedescendant", `prompt-option-${chosen}`); list.children[chosen].scrollIntoView({block: "nearest"}); } else target.removeAttribute("aria-activedescendant");
    if (options.length) placeOptions();
  };
  const placeOptions = () => {
    const {left, bottom} = caretPlace(target), wide = document.body.clientWidth, width = Math.min(320, wide - 16);
    const box = target.closest(".prompt-box"), strip = box.querySelector(".prompt-strip").getBoundingClientRect();
    const covers = box.querySelector(".prompt-fault") && bottom + LIST > strip.top, top = covers ? Math.max(bottom, strip.bottom) : bottom;  // faults can be read meanwhile
    Object.assign(list.style, {width: `${width}px`, left: `${Math.max(8, Math.min(left, wide - width - 8))}px`, top: `${top + 4}px`, maxHeight: `${Math.max(120, Math.min(LIST, innerHeight - top - 12))}px`});
  };
  const caretPlace = (field) => {
    const under = underOf(field), range = document.createRange();
    let left = field.selectionStart;
    for (const node of under.childNodes) {
      const words = node.nodeType === Node.TEXT_NODE ? node : node.firstChild;
      if (left <= words.length) { range.setStart(words, left); range.setEnd(words, left); return range.getBoundingClientRect(); }
      left -= words.length;
    }
    return field.getBoundingClientRect();
  };
  /** The text before the caret that can be completed. */
  const begun = (field) => {
    const caret = field.selectionStart, before = field.value.slice(Math.max(0, caret - 200), caret);
    if (caret !== field.selectionEnd) return null;
    let match = /<(?:lora|lyco):([^<>:]*)$/i.exec(before);
    if (match) return {kind: "lora", value: match[1], more: match[0].length - match[1].length};
    match = /(?:^|\W)__([\p{L}\p{N}][\p{L}\p{N}_\-./*]*)?$/u.exec(before);
    if (match) return {kind: "wildcard", value: match[1] || "", more: 2};
    const value = /[^,\n(){}[\]|:<>"]*$/.exec(before)[0].trimStart();
    return value.length > 1 && !/\s$/.test(value) ? {kind: "word", value, more: 0} : null;
  };
  const complete = async (field) => {
    const asked = begun(field), number = ++question;
    if (!asked) return close();
    let answer;
    try { answer = await ask({act: "complete", kind: asked.kind, value: asked.value}); } catch { return; }
    const now = document.activeElement === field && begun(field);
    if (number !== question || !now || now.value !== asked.value || now.kind !== asked.kind) return;  // late
    const found = answer.options || [];
    if (target !== field || JSON.stringify(found) !== JSON.stringify(options)) chosen = -1;  // the same list keeps what was chosen in it
    options = found;
    target = field;
    taken = answer.length + asked.more;
    paintOptions();
  };
  const take = (n) => {
    const field = target, {text, about, choose} = options[n], caret = field.selectionStart, rest = field.value.slice(caret);
    const strength = about === "LoRA" && /^(:[^<>,\n]*)?>/.exec(rest), closed = about === "wildcard" && rest.startsWith("__");
    const words = strength ? text.replace(/:1>$/, strength[1] ? "" : ":1") : closed ? text.slice(0, -2) : text;
    const comma = ["LoRA", "wildcard"].includes(about) || /^\s*[,)\]|}:]/.test(rest) ? "" : ", ";
    close();
    edit(field, caret - taken, caret, words + comma);
    if (choose) ask({act: "choose", name: choose}).catch(() => {});  // an embedding of a run
  };
  document.addEventListener("pointerdown", (event) => {
    const option = event.target.closest && event.target.closest("#prompt-options [role=option]");
    if (option) { event.preventDefault(); take(Number(option.dataset.n)); }  // the field keeps the focus
    else if (options.length) close();
  });
  document.addEventListener("focusout", ({target: left}) => { if (isPrompt(left)) close(); });
  addEventListener("scroll", ({target: moved}) => { if (options.length && moved !== list) close(); }, true);

  document.addEventListener("input", ({target: field}) => {
    if (!isPrompt(field)) return;
    follow(field);
    paint(field.id);
    after(`look ${field.id}`, SOON, () => look(field.id));
    if (silent) close();
    else { question += 1; after("complete", COMPLETE, () => complete(field)); }
  });

  /* ---- history ---- */

  let entries = null, at = -1, draft = null;
  const load = async () => { try { entries = (await ask({act: "history"})).entries || []; } catch { entries = entries || []; } };
  const put = ([prompt, negative], keeps) => {
    for (const [id, words] of [["gen-negative_prompt", negative], ["gen-prompt", prompt]]) {
      const field = byId(id);
      edit(field, 0, field.value.length, words);
      field.dispatchEvent(new Event("change", {bubbles: true}));
    }
    if (keeps) keeps.focus();
  };
  const both = () => ["gen-prompt", "gen-negative_prompt"].map((id) => byId(id).value);
  /** Alt+Up: the prompts before; Alt+Down: those after, at last what was typed. */
  const walk = async (field, by) => {
    if (at < 0) { draft = both(); await load(); }
    const shown = at < 0 ? draft : entries[at];
    if (by > 0 && at < 0 && entries.length > 1 && entries[0].join("\n") === shown.join("\n")) at = 0;  // it is already in the field
    const to = Math.max(-1, Math.min(at + by, entries.length - 1));
    if (to === at && to >= 0 || to < 0 && !draft) return;
    at = to;
    put(at < 0 ? draft : entries[at], field);
  };
  const openHistory = async () => {
    await load();
    const found = h("ul", {}), find = h("input", {type: "search", class: "text", "aria-label": "Find in the history", placeholder: "Find", autocomplete: "off"});
    const box = h("dialog", {class: "atelier-dialog prompt-history", "aria-label": "Prompt history"}, h("h2", {}, "Prompt history"), find, found, h("div", {class: "buttons"}, h("button", {type: "button", class: "btn", onclick: () => box.close()}, "Close")));
    const fill = () => {
      const wanted = find.value.trim().toLowerCase(), fits = entries.filter((pair) => pair.join("\n").toLowerCase().includes(wanted));
      found.replaceChildren(...fits.map((pair) => h("li", {}, h("button", {type: "button", class: "btn row", onclick: () => { box.close(); at = -1; put(pair, byId("gen-prompt")); }}, h("span", {}, pair[0].slice(0, 400)), pair[1] ? h("span", {class: "hint"}, `Negative: ${pair[1].slice(0, 200)}`) : null))));
      if (!fits.length) found.replaceChildren(h("li", {class: "hint"}, entries.length ? "No prompt contains this." : "No prompts yet. Generate an image first."));
    };
    find.addEventListener("input", fill);
    fill();
    atelier.modal(box);
    find.focus();
  };
  atelier.on("click", "#gen-history", openHistory);
  document.addEventListener("change", async ({target: field}) => {
    if (field.id !== "gen-styles-file" || !field.files.length) return;
    const answer = await ask({act: "import", text: await field.files[0].text()}).catch((error) => ({problems: [{what: `The file cannot be sent (${error.message})`, where: "", fix: "try again"}]}));
    field.value = "";
    if (answer.problems) atelier.complain(answer.problems); else atelier.say({kind: "success", text: answer.said});
    byId("gen-styles-again").click();
  });

  /* ---- keys ---- */

  document.addEventListener("keydown", (event) => {
    const field = event.target, control = event.ctrlKey || event.metaKey, by = {ArrowDown: 1, ArrowUp: -1}[event.key];
    if (!isPrompt(field)) return;
    if (by && control && !event.altKey && !event.shiftKey) weigh(field, by < 0);
    else if (by && event.altKey && !control && !event.shiftKey) walk(field, -by);
    else if (!options.length || control || event.altKey || event.shiftKey) return;
    else if (by) { chosen = (chosen + by + options.length + (chosen < 0 && by < 0 ? 1 : 0)) % options.length; paintOptions(); }
    else if (["Tab", "Enter"].includes(event.key) && chosen >= 0) take(chosen);  // Tab leaves the field where none was chosen
    else if (event.key === "Escape") close();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }, true);
})();
