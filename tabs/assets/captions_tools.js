"use strict";
/* Next to the text on the Captions tab: its tags as chips, autocomplete, quick tags, the tags of the dataset, changes of many captions
   and their history. All of them change the text in the box, or ask the server; captions.js saves. */
(() => {
  const atelier = window.atelier, {h, byId} = atelier, {ask, unanswered, put, own, box, filter} = atelier.captions;
  const SOON = 120, QUICK = 9;
  let tags = [], quick = [], replaced = -1, options = [], chosen = -1, question = 0, held = -1, last = "";
  const timers = {};
  const soon = (name, work) => { clearTimeout(timers[name]); timers[name] = setTimeout(work, SOON); };
  const same = (tag) => tag.replace(/\\/g, "").replace(/[\s_]+/g, " ").trim().toLowerCase();
  const quoted = (tag) => `"${tag.replace(/"/g, "")}"`;

  /* ---- the tags of the text ---- */

  /** The line that the caret was in last: each line is a caption of its own. */
  let line = 0;
  const lines = () => box().value.split("\n");
  const parts = () => (lines()[line] || "").split(",").map((part) => part.trim()).filter(Boolean);
  const write = (list) => {
    const field = box(), all = lines();
    all[line] = list.join(", ");
    field.value = all.join("\n");
    field.dispatchEvent(new Event("input", {bubbles: true}));
  };
  own.use_text = (words) => {
    const field = box();
    if (!editable() || field.value === words) return;
    field.value = words;
    field.dispatchEvent(new Event("input", {bubbles: true}));
    field.focus({preventScroll: true});
  };
  const editable = () => box() && !box().readOnly && !box().disabled;
  const add = (tag) => {
    const list = parts(), words = tag.split(",").map((part) => part.trim()).filter(Boolean).join(", ");
    if (!words) return;
    const there = list.findIndex((each) => same(each) === same(words));
    if (replaced >= 0 && replaced < list.length) list.splice(replaced, 1, words);
    else if (there < 0) list.push(words);
    replaced = -1;
    write(list);
  };
  const toggle = (tag) => {
    const list = parts(), there = list.findIndex((each) => same(each) === same(tag));
    if (there >= 0) list.splice(there, 1); else list.push(tag);
    write(list);
  };
  const move = (from, to) => {
    const list = parts();
    if (to < 0 || to >= list.length || from === to) return;
    list.splice(to, 0, ...list.splice(from, 1));
    write(list);
    focusChip(to);
  };
  const remove = (n) => { const list = parts(); list.splice(n, 1); write(list); focusChip(Math.min(n, list.length - 1)); };
  const focusChip = (n) => { const chip = byId("cap-chips").children[n]; if (chip) chip.querySelector(".tag").focus(); else byId("cap-tag").focus(); };
  const edit = (n) => { const field = byId("cap-tag"); replaced = n; field.value = parts()[n] ?? ""; field.focus(); field.select(); markEdited(); };
  /** That the field holds a tag of the caption, which what is typed replaces. */
  const markEdited = () => {
    for (const [n, chip] of [...byId("cap-chips").children].entries()) chip.classList.toggle("edited", n === replaced);
    byId("cap-tag").setAttribute("aria-label", replaced >= 0 ? `Edit the tag ${parts()[replaced] || ""}` : "Add a tag");
    byId("cap-tag").classList.toggle("edits", replaced >= 0);
  };

  const chip = (tag, n, can) => h("span", {class: "chip-of", draggable: can ? "true" : null, "data-n": n},
    h("button", {type: "button", class: "tag", "data-act": "chip", "data-arg": String(n), disabled: !can, title: "Enter edits, Delete removes, Ctrl + arrows move"}, tag.length > 60 ? `${tag.slice(0, 59)}…` : tag),
    h("button", {type: "button", class: "out-of", tabindex: "-1", "data-act": "unchip", "data-arg": String(n), disabled: !can, "aria-label": `Remove ${tag}`}, "×"));
  const paintChips = () => {
    const holder = byId("cap-chips");
    if (!holder || !box()) return;
    if (atelier.captions.key() !== last) { last = atelier.captions.key(); line = 0; replaced = -1; refreshHistory(); refreshScores(); }
    if (line >= lines().length) line = 0;
    const list = box().disabled ? [] : parts();
    byId("cap-tag").disabled = !editable();
    if (atelier.differs(holder, [list, editable()])) {
      const here = holder.contains(document.activeElement) ? [...holder.children].indexOf(document.activeElement.closest(".chip-of")) : -1;
      holder.replaceChildren(...list.map((tag, n) => chip(tag, n, editable())));
      if (here >= 0) focusChip(Math.min(here, list.length - 1));
    }
    paintQuick();
    setTimeout(markEdited, 0);
  };
  document.addEventListener("atelier-caption", paintChips);
  document.addEventListener("selectionchange", () => {
    const field = box();
    if (!field || document.activeElement !== field) return;
    const at = field.value.slice(0, field.selectionStart).split("\n").length - 1;
    if (at !== line) { line = at; paintChips(); }
  });

  const chips = (event) => event.target.closest && event.target.closest("#cap-chips .chip-of");
  document.addEventListener("keydown", (event) => {
    const at = chips(event);
    if (!at || !event.target.matches(".tag")) return;
    const n = Number(at.dataset.n), by = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (by && (event.ctrlKey || event.metaKey)) move(n, n + by);
    else if (by) focusChip(n + by < 0 ? 0 : n + by);
    else if (event.key === "Delete" || event.key === "Backspace") remove(n);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }, true);
  document.addEventListener("dragstart", (event) => { const at = chips(event); if (at) { held = Number(at.dataset.n); event.dataTransfer.effectAllowed = "move"; event.dataTransfer.setData("text/plain", parts()[held]); } });
  document.addEventListener("dragover", (event) => { if (held >= 0 && chips(event)) event.preventDefault(); });
  document.addEventListener("drop", (event) => { const at = chips(event); if (held < 0 || !at) return; event.preventDefault(); move(held, Number(at.dataset.n)); });
  document.addEventListener("dragend", () => { held = -1; });
  own.chip = (arg) => edit(Number(arg));
  own.unchip = (arg) => remove(Number(arg));

  /* ---- autocomplete ---- */

  const paintOptions = () => {
    const list = byId("cap-options"), field = byId("cap-tag");
    list.hidden = !options.length;
    field.setAttribute("aria-expanded", String(!!options.length));
    if (chosen >= 0) field.setAttribute("aria-activedescendant", `cap-option-${chosen}`); else field.removeAttribute("aria-activedescendant");
    list.replaceChildren(...options.map((each, n) => h("li", {id: `cap-option-${n}`, role: "option", "aria-selected": n === chosen ? "true" : "false", "data-n": n},
      h("b", {}, each.tag), each.alias ? h("i", {}, ` ${each.alias}`) : null, h("span", {}, each.count.toLocaleString("en")))));
    if (chosen >= 0) list.children[chosen].scrollIntoView({block: "nearest"});
  };
  const close = () => { options = []; chosen = -1; question += 1; paintOptions(); };
  const complete = async () => {
    const words = byId("cap-tag").value.trim(), number = ++question;
    if (!words) return close();
    let answer;
    try { answer = await ask({act: "complete", value: words}); } catch { return; }
    tellLists(answer.lists || []);
    if (number !== question || document.activeElement !== byId("cap-tag")) return;  // late: other letters stand there now
    options = answer.options || [];
    chosen = -1;
    paintOptions();
  };
  /** A list that cannot be read is named once. */
  let listsTold = "";
  const tellLists = (problems) => {
    const key = JSON.stringify(problems);
    if (problems.length && key !== listsTold) atelier.complain(problems, "Some tag lists are not used");
    listsTold = key;
  };
  const take = (tag) => { add(tag); byId("cap-tag").value = ""; close(); };
  document.addEventListener("input", (event) => {
    if (event.target.id === "cap-tag") soon("complete", complete);
    if (event.target.id === "cap-tags-find") soon("tags", refreshTags);
  });
  document.addEventListener("keydown", (event) => {
    if (event.target.id !== "cap-tag") return;
    const by = {ArrowDown: 1, ArrowUp: -1}[event.key], words = event.target.value;
    if (by && !event.altKey && options.length) { chosen = (chosen + by + options.length + (chosen < 0 && by < 0 ? 1 : 0)) % options.length; paintOptions(); }
    else if (event.key === "Enter" || event.key === ",") { if (!words.trim()) return; take(chosen >= 0 ? options[chosen].tag : words); }
    else if (event.key === "Tab" && chosen >= 0) take(options[chosen].tag);
    else if (event.key === "Escape" && (options.length || words || replaced >= 0)) { if (options.length) close(); else { const n = replaced; event.target.value = ""; replaced = -1; markEdited(); if (n >= 0) focusChip(n); } }
    else if (event.key === "Backspace" && !words && parts().length) return focusChip(parts().length - 1);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }, true);
  atelier.on("pointerdown", "#cap-options [role=option]", (option, event) => {
    event.preventDefault();  // the box keeps the focus
    take(options[Number(option.dataset.n)].tag);
  });
  /** What stands in the field is meant: leaving it, by Tab, Save or another image, adds it to the image it was typed for. */
  const settle = () => { const field = byId("cap-tag"); if (field && field.value.trim() && editable()) take(field.value); else close(); replaced = -1; };
  document.addEventListener("focusout", (event) => { if (event.target.id === "cap-tag") settle(); });
  document.addEventListener("keydown", (event) => { if (event.target.id === "cap-tag" && (event.altKey || event.ctrlKey || event.metaKey) && event.key.length > 0 && !["Alt", "Control", "Meta", "Shift"].includes(event.key) && (event.altKey || event.key.toLowerCase() === "s")) settle(); }, true);

  /* ---- quick tags and the tags of the dataset ---- */

  const paintQuick = () => {
    const holder = byId("cap-quick"), there = new Set(box().disabled ? [] : parts().map(same));
    if (!holder || !atelier.differs(holder, [quick, quick.map((tag) => there.has(same(tag))), editable()])) return;
    holder.replaceChildren(...Array.from({length: QUICK}, (_, n) => quick[n] ? h("button", {type: "button", class: "quick", "data-act": "quick", "data-arg": quick[n], disabled: !editable(), "aria-keyshortcuts": n + 1, "aria-pressed": String(there.has(same(quick[n]))), title: `${quick[n]}, key ${n + 1}`}, h("kbd", {"aria-hidden": "true"}, String(n + 1)), quick[n]) : h("span", {})));
  };
  own.quick = (arg) => toggle(arg);
  document.addEventListener("keydown", (event) => {
    const n = "123456789".indexOf(event.key), free = event.target.matches("body, #cap-main *") && !event.target.closest("input, textarea, select, [contenteditable=true]");
    const seen = byId("cap-main") && byId("cap-main").offsetParent !== null && !document.querySelector("dialog[open]");
    if (!seen || !free || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "?") { event.preventDefault(); return own.keys(); }
    if (event.key.length !== 1 || n < 0 || !quick[n] || !editable()) return;
    event.preventDefault();
    toggle(quick[n]);
  });

  let asked = "", searches = 0, found = 0;
  const refreshTags = async () => {
    const number = ++searches, find = byId("cap-tags-find").value;
    let answer;
    try { answer = await ask({act: "tags", arg: asked, find, order: byId("cap-tags-order").value}); } catch { return; }
    if (number !== searches || !answer.tags) return;
    tags = answer.tags;
    found = answer.found;
    const known = new Map(answer.known.map((tag) => [same(tag), tag]));
    quick = quick.map((tag) => known.get(same(tag))).filter(Boolean);  // their numbers stay, their spelling is the captions'
    const fresh = answer.quick.filter((tag) => !quick.includes(tag)), shared = fresh.filter((tag) => answer.shared.includes(tag));
    quick = [...new Set([...quick.slice(0, QUICK - shared.length), ...shared, ...fresh])].slice(0, QUICK);
    mixed = answer.mixed;
    byId("cap-tags-says").textContent = `${find.trim() ? `${found.toLocaleString("en")} of ` : ""}${answer.all.toLocaleString("en")}`;
    together = answer.together || [];
    paintTags();
    if (box()) paintQuick();
  };
  own.tags_order = () => refreshTags();
  let together = [], mixed = {};
  const bar = ([tag, count], most) => h("li", {},
    h("button", {type: "button", class: "tag-row", "data-act": "only", "data-arg": tag, title: "Show the images that have it; with Shift, also the filter before"},
      h("span", {class: "share", style: `width:${Math.max(1, 100 * count / most)}%`}), h("span", {class: mixed[tag] ? "words mixed" : "words"}, [tag, ...(mixed[tag] || [])].join(" / ")), h("span", {class: "count"}, count.toLocaleString("en"))),
    h("button", {type: "button", class: "btn quiet", "data-act": "rename_all", "data-arg": tag, "aria-label": `Rename ${tag} everywhere`}, "Rename"),
    h("button", {type: "button", class: "btn quiet", "data-act": "remove_all", "data-arg": tag, "aria-label": `Remove ${tag} everywhere`}, "Remove"));
  const paintTags = () => {
    const holder = byId("cap-tags");
    if (!holder || !byId("cap-all-tags").open) return;
    const most = Math.max(1, ...tags.map((each) => each[1])), more = found - tags.length;
    if (!atelier.differs(holder, [tags, more, asked, together, mixed])) return;
    const beside = asked && together.length ? [h("li", {class: "together"}, `Most often with ${asked}: ${together.map(([tag, count]) => `${tag} (${count})`).join(", ")}`)] : [];
    holder.replaceChildren(...beside, ...tags.map((each) => bar(each, most)), ...(more > 0 ? [h("li", {class: "hint"}, `and ${more.toLocaleString("en")} more: find one above`)] : []));
  };
  let shift = false;
  addEventListener("click", (event) => { shift = event.shiftKey; }, true);
  own.only = (arg) => {
    const before = byId("cap-find").value.trim();
    asked = arg;
    filter(shift && before ? `${before} & ${quoted(arg)}` : quoted(arg));
    refreshTags();
  };
  const fill = async (values) => {
    let answer = {};
    try { for (const [arg, value] of values) answer = await ask({act: "bulk_field", key: chosenKeys(), arg, value}); } catch (error) { return unanswered(error); }
    own.part("tools");
    byId("cap-many").open = true;
    paintBulk(answer);
    byId("cap-many").scrollIntoView({block: "nearest"});
  };
  own.rename_all = async (arg) => { selected.clear(); await filter(""); await fill([["edit", "replace"], ["match", "tag"], ["find", arg], ["replace_with", arg]]); const field = byId("cap-bulk-replace_with"); if (field) { field.focus(); field.select(); } };
  own.remove_all = async (arg) => { selected.clear(); await filter(""); await fill([["edit", "remove"], ["tags", arg]]); };

  /* ---- the selected images ---- */

  const MOST = 2000;
  const selected = new Set();
  let anchor = "";
  const picks = () => [...document.querySelectorAll("#cap-picks .pick")];
  atelier.chosen["tools-captioners"] = () => ({keys: chosenKeys()});
  let listed = null;  // number of images in the list, where it is not the whole dataset
  const paintScope = () => atelier.text(document.querySelector("#tools-captioners .cap-scope"),
    selected.size ? `for the ${selected.size} selected` : listed === null ? "for all images" : `for the ${listed} in the list`);
  document.addEventListener("atelier-drawn", paintScope);
  own.listed = (count) => { listed = count; paintScope(); };
  const paintSelected = () => {
    paintScope();
    for (const row of picks()) { row.classList.toggle("selected", selected.has(row.dataset.arg)); if (selected.size) row.setAttribute("aria-pressed", String(selected.has(row.dataset.arg))); else row.removeAttribute("aria-pressed"); }
    const scope = byId("cap-scope");
    if (!scope || scope.dataset.count === String(selected.size)) return;
    scope.dataset.count = String(selected.size);
    scope.replaceChildren(...(selected.size ? [`the ${selected.size} selected, with one undo `, h("button", {type: "button", class: "link", "data-act": "unselect"}, "Clear selection")] : ["all images of the list, with one undo; Ctrl or Shift + click selects some"]));
  };
  const select = (key, range) => {
    const keys = picks().map((row) => row.dataset.arg), from = keys.indexOf(anchor), to = keys.indexOf(key);
    if (range && from >= 0) for (const each of keys.slice(Math.min(from, to), Math.max(from, to) + 1)) selected.add(each);
    else if (selected.has(key)) selected.delete(key);
    else if (selected.size < MOST) selected.add(key);
    anchor = key;
    paintSelected();
    refreshBulk();
  };
  own.unselect = () => { selected.clear(); paintSelected(); refreshBulk(); };
  const chosenKeys = () => [...selected].join(" ");
  atelier.captions.selected = chosenKeys;
  document.addEventListener("click", (event) => {
    const row = event.target.closest && event.target.closest("#cap-picks .pick");
    if (row && !(event.ctrlKey || event.metaKey || event.shiftKey)) anchor = row.dataset.arg;
    if (!row || !(event.ctrlKey || event.metaKey || event.shiftKey)) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    select(row.dataset.arg, event.shiftKey);
  }, true);
  /* The list is one stop of Tab; Up and Down go through it. */
  document.addEventListener("keydown", (event) => {
    const by = {ArrowDown: 1, ArrowUp: -1}[event.key], rows = by && !event.altKey && event.target.matches && event.target.matches("#cap-picks .pick") ? picks() : [];
    const to = rows[rows.indexOf(event.target) + by];
    if (!rows.length) return;
    event.preventDefault();
    if (to) to.focus();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "x" || !event.target.matches || !event.target.matches("#cap-picks .pick") || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    select(event.target.dataset.arg, false);
  });

  /* ---- many captions, history ---- */

  const paintBulk = (answer) => {
    if (answer.problems) return atelier.complain(answer.problems);
    if (answer.bulk === undefined) return;
    const holder = byId("cap-bulk"), fresh = document.createElement("div"), typing = document.activeElement;
    fresh.innerHTML = answer.bulk;
    const fields = (node) => [...node.querySelectorAll("[data-act=bulk_field]")].map((field) => field.id).join();
    const writes = holder.contains(typing) && typing.matches("input[type=text], textarea");
    if (!writes || fields(holder) !== fields(fresh)) {
      const {id, value, defaultValue} = writes ? typing : {};
      put("cap-bulk", answer.bulk);
      const twin = value !== defaultValue && byId(id);  // what was typed while the other form was on its way
      if (twin) { twin.value = value; twin.focus({preventScroll: true}); }
      return;
    }
    const form = holder.querySelector(".concept-fields");  // what is being typed stays; what it would do follows
    form.previousSibling.replaceWith(fresh.firstChild);
    while (form.nextSibling) form.nextSibling.remove();
    form.after(...[...fresh.childNodes].filter((node) => !(node.matches && node.matches(".concept-fields"))));
    holder.dataset.html = "";
  };
  const refreshBulk = async () => { if (byId("cap-many").open) try { paintBulk(await ask({act: "bulk", key: chosenKeys()})); } catch { /* asked again with the next change */ } };
  own.bulk_field = async (arg, value) => { try { paintBulk(await ask({act: "bulk_field", key: chosenKeys(), arg, value})); } catch (error) { unanswered(error); refreshBulk(); } };
  for (const each of ["load", "save", "delete", "put_back", "put_all_back", "undo", "redo", "json"]) own[`preset_${each}`] = async (arg, value) => {
    try { paintBulk(await ask({act: `preset_${each}`, key: chosenKeys(), arg, value, session: atelier.session})); } catch (error) { unanswered(error); refreshBulk(); }
  };
  /* Thresholds are followed while they are typed: only what they make is drawn anew, never the field. */
  const refreshScores = async (asked) => {
    if (!byId("cap-scored") || !byId("cap-scored").open) return;
    let answer;
    try { answer = await ask({act: "scores", key: atelier.captions.key(), ...asked}); } catch { return; }
    if (asked && asked.arg) atelier.attr(byId(`cap-scores-${asked.arg}`), "aria-invalid", answer.problems ? "true" : null);
    if (answer.problems) return put("cap-scores-result", `<p class="hint" role="alert">${answer.problems[0].what.replace(/[&<>]/g, "")}</p>`);
    if (answer.form !== undefined) put("cap-scores", answer.form);
    put("cap-scores-result", answer.result);
  };
  own.scores_field = (arg, value) => refreshScores({act: "scores_field", arg, value});
  own.scores_write = async () => { try { await ask({act: "scores_write"}); } catch { /* the form shows another tool then */ } own.captioners(); };
  document.addEventListener("input", (event) => {
    const typed = event.target.closest && event.target.closest("#cap-bulk [data-act=bulk_field]");
    if (typed && typed.matches("input[type=text], textarea")) soon("bulk-field", () => own.bulk_field(typed.dataset.arg, typed.value));
    const field = event.target.closest && event.target.closest("#cap-scores [data-act=scores_field]");
    if (field && field.tagName !== "SELECT" && field.type !== "checkbox") soon("scores", () => own.scores_field(field.dataset.arg, field.value));
  });

  const refreshHistory = () => soon("history", async () => {
    if (!byId("cap-history") || !byId("cap-history").open) return;
    try {
      const [texts, changes] = await Promise.all([ask({act: "earlier", key: atelier.captions.key()}), ask({act: "changes"})]);
      if (texts.texts !== undefined) put("cap-earlier", texts.texts);
      if (changes.changes !== undefined) put("cap-changes", changes.changes);
    } catch { /* asked again when the list changes */ }
  });
  document.addEventListener("atelier-captions", () => { soon("tags", refreshTags); soon("bulk", refreshBulk); refreshHistory(); paintSelected(); });
  document.addEventListener("toggle", (event) => {
    if (event.target.id === "cap-all-tags") paintTags();
    if (event.target.id === "cap-many") refreshBulk();
    if (event.target.id === "cap-history") refreshHistory();
    if (event.target.id === "cap-scored") refreshScores();
  }, true);

  /** On a narrow window the caption or the tools are shown below the list. */
  own.part = (arg) => { for (const each of byId("cap-parts").children) each.setAttribute("aria-pressed", String(each.dataset.arg === arg)); };
  /** To the form of the captioners. */
  own.captioners = () => {
    own.part("tools");
    const form = byId("tools-captioners"), first = form.querySelector("select, input");
    form.scrollIntoView({block: "start"});
    first.focus({preventScroll: true});
  };

  const KEYS = [["Left, Right", "previous and next image; with Alt while typing"], ["Ctrl + S", "save"], ["Ctrl + Z, Ctrl + Y", "undo and redo the last saved change, outside of the text box"], ["1 to 9", "quick tags, in the list and the editor, outside of the text box"],
    ["Enter or comma", "add the tag that was typed; Down and Up choose a known one"], ["Backspace", "in the empty tag field: to the last tag"], ["Left, Right on a tag", "the next tag; with Ctrl the tag moves"], ["Enter on a tag", "edit it"], ["Delete on a tag", "remove it"], ["Up, Down in the list", "the next image of the list; Enter opens it"], ["Ctrl or Shift + click, x", "select images of the list; a change of many captions is for these"], ["o", "control images beside, over or without their images"], ["?", "this list"]];
  own.keys = () => atelier.modelsDialog("Keys of the Captions tab", h("dl", {class: "keys"}, ...KEYS.flatMap(([key, what]) => [h("dt", {}, key), h("dd", {}, what)])));
})();
