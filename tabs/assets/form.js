"use strict";
/* The Train form: what its fields hold, marks on them, notes, search, undo, presets, the JSON pane. */
(() => {
  const atelier = window.atelier, {h, text, show, attr, byId} = atelier;
  let state = {values: {}, changed: {}, errors: {}, notes: {}, ignored: {}, idle: [], hints: {}, recipes: {}, needs: {}, groups: {}, preset: {}, json: ""};

  /* ---- one field ---- */

  let form = null, controls = {};  // the drawn form, and {path: its controls}
  /** The form is drawn when its tab is first opened. Whether it is there. */
  const begin = () => {
    if (form && form.isConnected) return true;
    form = document.querySelector("#train-form .first");
    controls = {};
    for (const node of document.querySelectorAll("#train-form [data-set]")) (controls[node.dataset.set] ||= []).push(node);
    if (form) paintLists();
    return !!form;
  };
  const valueOf = (node) => node.type === "checkbox" ? String(node.checked) : node.value;
  const put = (node, value) => {
    const held = String(value);
    if (node.type === "checkbox") node.checked = value === true;
    else if (node.type === "radio") node.checked = node.value === held;
    else if (node.value !== held) node.value = held;
  };
  /* What is being typed stays, and what was sent until the server has it. */
  let typed = null;
  const isHeld = (path) => (typed && typed.dataset.set === path && document.activeElement === typed) || atelier.isUnsaved(path);
  const fill = () => {
    for (const [path, value] of Object.entries(state.values)) if (controls[path] && !isHeld(path)) for (const node of controls[path]) put(node, value);
    for (const list of document.querySelectorAll("#train-form select.offered")) list.value = state.values[list.dataset.offers];
    const presets = byId("preset-list");
    if (presets) presets.value = state.preset.name;
    atelier.showFaces();
  };
  document.addEventListener("input", ({target}) => { if (target.matches("#train-form :is(textarea, input[type=text])[data-set]")) typed = target; });
  document.addEventListener("change", ({target}) => {
    const {set, offers} = target.dataset;
    if (!target.closest("#train-form")) return;
    typed = null;
    if (set) atelier.edit({[set]: valueOf(target)});
    else if (offers) { put(controls[offers][0], target.value); atelier.edit({[offers]: target.value}); }
    else if (target.id === "preset-list") atelier.act("load", {preset: target.value});
  });

  /* ---- lists ---- */

  let lists = {};
  const options = ([group, choices]) => {
    const made = choices.map(([words, value]) => h("option", {value}, words));
    return group ? [h("optgroup", {label: group}, made)] : made;
  };
  const paintLists = () => {
    for (const [path, groups] of Object.entries(lists)) {
      if (path === "preset") { byId("preset-list").replaceChildren(...groups.flatMap(options)); continue; }
      const list = document.querySelector(`#train-form [data-offers="${path}"]`);
      if (list) list.replaceChildren(...groups.flatMap(options));
      byId(`${atelier.fields[path].id}-list`).replaceChildren(...groups.flatMap(([, choices]) => choices.map(([words, value]) => h("option", {value}, words))));
    }
  };
  atelier.parts.lists = (data) => { lists = data; if (begin()) { paintLists(); fill(); } };

  const paint = (path) => {
    const facts = atelier.fields[path], block = facts.tab === "Train" ? byId(facts.id) : null;
    if (!block) return;
    const foot = block.querySelector(":scope > .field-foot");
    const error = state.errors[path], ignored = state.ignored[path], was = state.changed[path], notes = state.notes[path] || [];
    const model = path === "model.base_model" ? state.model : null;
    const idle = state.idle.includes(path), hint = state.hints[path], recipes = state.recipes[path] || [];
    const out = facts.only.length > 0 && !facts.only.includes(state.method);
    const offered = model && model.offer ? [atelier.downloadOf(model.offer), atelier.titleOf(model.offer)] : null;
    if (!atelier.differs(foot, [out, error, ignored, was, notes, idle, hint, recipes, model, offered])) return;
    block.classList.toggle("has-error", !!error || notes.some((note) => note.level === "error"));
    block.classList.toggle("is-changed", was !== undefined);
    block.classList.toggle("is-ignored", !!ignored);
    /* What this method has no use for is folded away, unless it holds something of its own or is wrong. */
    block.classList.toggle("is-idle", idle && was === undefined && !error && !facts.only.length);
    block.classList.toggle("is-out", out);
    const row = block.closest(".first .fields");
    if (row) row.classList.toggle("is-out", !row.querySelector(".field:not(.is-out), #preset-column"));
    for (const node of controls[path]) attr(node, "aria-invalid", error ? "true" : null);
    const lines = [];
    if (error) lines.push(h("p", {class: "field-error refused", role: "alert"}, `${error.what}. `, h("span", {}, `${sentence(error.fix)} The previous value is used.`)));
    for (const note of notes) lines.push(h("p", {class: note.level === "error" ? "field-error" : "field-advice"}, `${note.what}. `, h("span", {}, sentence(note.fix))));
    if (path === "dataset.folder" && atelier.hasTab("Dataset")) lines.push(h("p", {}, h("button", {type: "button", class: "link", onclick: () => atelier.goTo("Dataset")}, "Browse or add images")));
    if (model && !error) lines.push(...about(model));
    if (path === "model.base_model" || path === "model.vae") lines.push(findModel(path === "model.vae" ? "vae" : "base_model"));
    if (hint && !ignored) lines.push(h("p", {class: "hint field-hint"}, hint));
    for (const recipe of recipes) lines.push(h("p", {class: "recipe"}, h("button", {type: "button", class: "btn small", title: `Sets ${recipe.sets}`,
      onclick: () => atelier.act("recipe", {field: path, title: recipe.title})}, recipe.title), h("span", {class: "hint"}, recipe.why)));
    if (ignored) lines.push(h("p", {class: "field-ignored"}, sentence(ignored)));
    if (was !== undefined || error) {
      const value = was === undefined ? "" : was.length > 28 ? was.slice(0, 27) + "…" : was;
      lines.push(h("p", {class: "field-changed"}, error ? h("span", {class: "not-used"}, "Not used") : h("span", {class: "mark"}, "Changed"),
        h("button", {type: "button", class: "link", title: was === undefined ? "" : `${baseline()}: ${was}`, onclick: () => atelier.act("put_back", {field: path})},
          was === undefined ? "Restore the value" : `Restore ${value}`)));
    }
    foot.replaceChildren(...lines);
  };
  /** What the base model is, and by what it was told; a model that is not here is offered. */
  const about = (model) => model.problem
    ? [h("p", {class: "field-error", role: "alert"}, `${sentence(model.problem)} `, h("span", {}, sentence(model.fix))),
      model.offer ? offer(model.offer) : null].filter(Boolean)
    : model.family ? [h("p", {class: "model-family", title: model.evidence}, h("span", {class: "chip"}, model.family), h("span", {class: "hint"}, model.evidence))] : [];
  const offer = (source) => {
    const work = atelier.downloadOf(source);
    const again = !work || !atelier.going(work);
    return h("div", {class: "offer"}, work ? atelier.workLine(work) : null,
      again ? h("button", {type: "button", class: "btn small", onclick: () => atelier.getModel(source)}, `${work ? "Resume" : "Download"} ${atelier.titleOf(source)}`) : null);
  };
  const findModel = (use) => h("p", {class: "find-model"},
    h("button", {type: "button", class: "link", onclick: () => atelier.openCatalog()}, "Get a model"),
    h("button", {type: "button", class: "link", onclick: () => atelier.browseModels(use)}, "Browse files"));
  atelier.repaintModel = () => paint("model.base_model");
  const baseline = () => state.preset.name ? "In the preset" : "The default";
  const sentence = atelier.sentence;

  /* ---- groups ---- */

  const paintGroups = () => {
    for (const [group, info] of Object.entries(state.groups)) {
      const button = document.querySelector(`#group-${group} > button.label-wrap`), card = button.parentElement;
      let line = button.querySelector(".group-line");
      if (!line) {
        line = h("span", {class: "group-line"}, h("span", {class: "group-summary"}), h("span", {class: "group-count"}), h("span", {class: "group-errors"}));
        button.append(line);
      }
      text(line.querySelector(".group-summary"), info.idle ? `not used: ${info.idle}` : info.summary);
      show(card, info.shown);
      const idle = !!info.idle && !info.changed;
      if (idle && !card.classList.contains("is-idle")) open(button, false);
      card.classList.toggle("is-idle", idle);
      paintFolded(card, group);
      text(line.querySelector(".group-count"), info.changed ? `${info.changed} changed` : "");
      text(line.querySelector(".group-errors"), info.errors ? `${info.errors} to fix` : "");
    }
  };
  const isOpen = (button) => button.getAttribute("aria-expanded") === "true";
  const open = (button, opened = true) => {
    attr(button, "aria-expanded", String(opened));
    show(button.nextElementSibling, opened);
  };
  atelier.on("click", "#train-form button.label-wrap", (button) => open(button, !isOpen(button)));

  /** One line in place of the fields that the method has no use for; it brings them back. */
  const paintFolded = (card, group) => {
    const folded = card.classList.contains("is-idle") ? 0 : card.querySelectorAll(".field.is-idle").length;
    const content = card.querySelector(".folded");
    let line = card.querySelector(".folded-line");
    if (!folded) { if (line) line.remove(); return; }
    if (!line) {
      line = h("button", {type: "button", class: "link folded-line", onclick: () => { card.classList.toggle("show-idle"); paintFolded(card, group); }});
      content.append(line);
    }
    const shown = card.classList.contains("show-idle");
    text(line, shown ? "Hide unused settings" : `Show ${folded} unused setting${folded === 1 ? "" : "s"}`);
    attr(line, "aria-expanded", shown ? "true" : "false");
  };

  /** What a method needs stands on the first screen while it is chosen, and in its group else: `away` notes where that is. */
  const away = new Map();
  const stand = (here) => {
    for (const [path, mark] of away) if (!here.includes(path)) { mark.replaceWith(byId(atelier.fields[path].id)); away.delete(path); }
    for (const path of here) if (!away.has(path)) {
      const field = byId(atelier.fields[path].id), mark = h("span", {hidden: true});
      away.set(path, mark);
      field.replaceWith(mark);
      byId("method-fields").append(field);
    }
  };
  const paintNeeds = () => {
    const line = byId("method-needs"), {needs} = state;
    if (!line || !atelier.differs(line, needs)) return;
    show(line, !!needs.text);
    line.replaceChildren(needs.text || "", ...(needs.fields || []).flatMap(([words, path]) => [" ", h("button", {type: "button", class: "link", "data-field": path}, words)]),
      ...(needs.does || []).flatMap(([words, act]) => [" ", h("button", {type: "button", class: "btn", "data-does": act, onclick: () => (atelier.does[act] || atelier.act)(act)}, words)]));
    stand(needs.here || []);
  };

  /** The curves of the learning rate and of the timesteps, drawn when their group is open and something in it has changed. */
  const SKETCHES = {curve: ["sketch", "Learning rate over the run"], timesteps: ["timesteps", "Training timesteps"]}, charts = {};
  const paintSketch = () => {
    for (const [fact, [id, label]] of Object.entries(SKETCHES)) {
      const holder = byId(`${id}-chart`), data = state[fact];
      if (!holder || !data) continue;
      if (!charts[id] || charts[id].holder !== holder) charts[id] = new atelier.Chart(holder, {label});
      if (!atelier.differs(holder, data)) continue;
      const kinds = ["smooth", "second", "third"], lines = data.lines.map((line, n) => ({...line, kind: kinds[n % kinds.length]}));
      show(holder, data.steps.length > 0);
      show(holder.parentElement, data.steps.length > 0 || !!data.about);
      charts[id].set({...data, lines});
      byId(`${id}-legend`).replaceChildren(...lines.flatMap((line) => [h("span", {}, h("i", {class: line.kind}), line.name), " "]));
      text(byId(`${id}-about`), data.about);
      show(byId(`${id}-about`), !!data.about);
    }
  };

  const paintAll = () => {
    atelier.paintImport(state);
    if (!begin()) return;
    fill();
    atelier.family = state.model ? state.model.family : "";
    atelier.drawBars();
    atelier.askLayers();
    for (const path of Object.keys(atelier.fields)) paint(path);
    paintGroups(); paintNeeds(); paintSketch(); paintBar(); paintJson();
  };

  /* ---- preset bar ---- */

  const paintBar = () => {
    const {preset} = state;
    const count = Object.keys(state.changed).length;
    const words = count ? `${count} field${count === 1 ? "" : "s"} changed` : preset.name ? "as saved" : "defaults";
    text(byId("preset-state"), words);
    const bar = byId("preset-bar");
    bar.classList.toggle("is-changed", count > 0);
    for (const [name, words] of [["undo", state.undo], ["redo", state.redo]]) {
      const button = bar.querySelector(`[data-do=${name}]`);
      if (!button) continue;
      button.disabled = !words;
      button.title = words ? `${name === "undo" ? "Undo" : "Redo"}: ${words} (Ctrl+Alt+${name === "undo" ? "Z" : "Y"})` : `Nothing to ${name}`;
    }
    for (const button of bar.querySelectorAll("[data-needs]")) {
      const needs = button.dataset.needs;
      button.disabled = !{own: preset.own, changes: count, import: state.imported}[needs];
    }
    paintRecipe(preset.recipe);
    paintFit(preset.recipe && preset.recipe.fit);
  };

  /** What speaks against the loaded recipe, and the two ways out. */
  const paintFit = (fit) => {
    const box = byId("recipe-fit");
    if (!box || !atelier.differs(box, fit)) return;
    show(box, !!fit);
    if (!fit) return box.replaceChildren();
    box.className = fit.level;
    const way = (words, onclick) => h("button", {type: "button", class: "btn small", onclick}, words);
    box.replaceChildren(...fit.what.map((what) => h("p", {}, what)), h("div", {class: "ways"},
      fit.recipe ? way(`Use ${fit.recipe[1]}`, () => atelier.act("load", {preset: fit.recipe[0]})) : null,
      fit.model ? way(`Get an ${fit.model} model`, () => atelier.openCatalog()) : null));
  };

  /** Each value that the loaded recipe sets, with its reason. */
  const paintRecipe = (recipe) => {
    const list = byId("recipe-sets");
    if (!list || !atelier.differs(list, recipe)) return;
    show(byId("recipe"), !!recipe);
    text(byId("recipe-about"), recipe ? recipe.about : "");
    list.replaceChildren(...(recipe ? recipe.sets : []).map((each) =>
      h("div", {}, h("dt", {}, h("button", {type: "button", class: "link", "data-field": each.field}, each.title), ` ${each.value}`), h("dd", {}, each.why))));
  };

  const nameCheck = (name) => !name ? "Enter a name." : /[<>:"/\\|?*]/.test(name) ? "File names cannot contain: < > : \" / \\ | ? *" : "";
  const plain = (name) => (name || "").replace(/^user\//, "");
  const chores = {
    save: () => state.preset.own ? atelier.act("save", {preset: state.preset.name, replace: true}) : chores["save-as"](),
    "save-as": async () => {
      const name = await atelier.dialog({title: "Save as a preset", text: "Saves every setting of the form.",
        input: state.preset.own ? plain(state.preset.name) : state.names.project, ok: "Save", check: nameCheck});
      if (!name) return;
      const taken = (state.preset.all || []).includes("user/" + name);
      if (taken && !(await atelier.dialog({title: "Replace it?", text: `A preset named '${name}' already exists.`, ok: "Replace"}))) return;
      atelier.act("save", {preset: name, replace: taken});
    },
    rename: async () => {
      const name = await atelier.dialog({title: "Rename the preset", input: plain(state.preset.name), ok: "Rename", check: nameCheck});
      if (name && name !== plain(state.preset.name)) atelier.act("rename", {preset: state.preset.name, to: name});
    },
    delete: async () => {
      const sure = await atelier.dialog({title: "Delete the preset?", text: `'${plain(state.preset.name)}' is deleted permanently. The form keeps its values.`, ok: "Delete", danger: true});
      if (sure) atelier.act("delete", {preset: state.preset.name});
    },
    open: () => byId("preset-file").click(),
    download: () => atelier.download(`${plain(state.preset.name) || state.names.project || "preset"}.json`, state.json),
  };
  atelier.chores = chores;

  /* ---- search ---- */

  const fold = (words) => words.toLowerCase().replace(/[^a-z0-9]+/g, " ").trim();
  /** How well a field answers a query, 0 best; -1: not at all. "LR" in a query, name or title stands for learning rate. */
  const shorten = atelier.shortSetting = (words) => fold(words).replaceAll("learning rate", "lr");
  const match = atelier.matchSetting = (query, path, facts) => {
    const title = shorten(`${facts.title} ${facts.unit}`), names = [path.split(".")[1], ...facts.kohya.split(", ")].map(shorten).filter(Boolean);
    const words = query.split(" "), all = (text) => words.every((word) => text.includes(word));
    if (shorten(facts.title) === query || names.includes(query)) return 0;
    if (title.startsWith(query)) return 1;
    if (names.some((name) => name.startsWith(query))) return 2;
    const rank = [title, `${title} ${names.join(" ")}`, `${title} ${shorten(`${path} ${facts.kohya} ${facts.help} ${facts.groupTitle}`)}`].findIndex(all);
    return rank < 0 ? -1 : rank + 3;
  };
  const found = (typed) => {
    const query = shorten(typed);
    if (!query) return [];
    return Object.entries(atelier.fields).map(([path, facts]) => {
      const rank = match(query, path, facts);
      return [rank < 0 ? rank : rank + (facts.group ? 0.1 : 0) + (state.idle.includes(path) ? 0.5 : 0), path];  // the first screen first, what has no use now last
    }).filter(([rank]) => rank >= 0).sort((a, b) => a[0] - b[0]).map(([, path]) => path);
  };
  /** While something is searched, only the groups that hold a match are listed; null: all. */
  const filterGroups = (paths) => {
    const groups = paths && new Set(paths.map((path) => atelier.fields[path].group));
    for (const card of document.querySelectorAll("#train-form .group")) card.classList.toggle("no-match", !!groups && !groups.has(card.id.slice("group-".length)));
  };
  /** A name of sd-scripts that is no field: what takes its place. */
  const elsewhere = (query) => {
    const wanted = fold(query), names = wanted.length < 3 ? [] : Object.keys(atelier.elsewhere || {}).filter((name) => fold(name).includes(wanted)).slice(0, 3);
    return names.length ? names.map((name) => h("li", {class: "none"}, h("code", {}, name), ` ${sentence(atelier.elsewhere[name])}`)) : [h("li", {class: "none"}, "No setting found")];
  };
  /** A field that searches settings, with its list of matches: the arrow keys and Enter choose one, Escape empties it.
      found(typed): matches, the best first; row(match): what its line shows; choose(match); none(typed): lines without a match;
      filter(matches): called while something is typed, with null when it is not */
  atelier.searchBox = (input, list, {found, row, choose, none, filter}) => {
    if (!input || input.dataset.begun) return;
    input.dataset.begun = "1";
    let matches = [], active = 0;
    const look = () => {
      const every = found(input.value);
      matches = every.slice(0, 8);
      active = 0;
      filter(input.value.trim() ? every : null);
      draw();
    };
    const draw = () => {
      const typed = !!input.value.trim();
      list.replaceChildren(...matches.map((match, n) => h("li", {role: "option", id: `${list.id}-${n}`, "aria-selected": n === active ? "true" : "false",
        onmousedown: (event) => { event.preventDefault(); choose(match); }}, row(match))));
      if (typed && !matches.length) list.append(...none(input.value));
      show(list, typed);
      attr(input, "aria-expanded", typed ? "true" : "false");
      attr(input, "aria-activedescendant", matches.length ? `${list.id}-${active}` : null);
    };
    const end = () => { input.value = ""; look(); };
    input.addEventListener("input", look);
    input.addEventListener("atelier-found", end);
    input.addEventListener("keydown", (event) => {
      if (event.key === "ArrowDown" || event.key === "ArrowUp") {
        event.preventDefault();
        active = (active + (event.key === "ArrowDown" ? 1 : -1) + matches.length) % Math.max(1, matches.length);
        draw();
      } else if (event.key === "Enter" && matches[active]) { event.preventDefault(); choose(matches[active]); }
      else if (event.key === "Escape") end();
    });
    input.addEventListener("blur", () => show(list, false));
    input.addEventListener("focus", () => { if (input.value.trim()) show(list, true); });
  };
  const beginSearch = () => atelier.searchBox(byId("field-search"), byId("field-results"), {
    found, none: elsewhere, filter: filterGroups, choose: (path) => atelier.goToField(path),
    row: (path) => {
      const {title, group, groupTitle, kohya} = atelier.fields[path];
      return [h("strong", {}, title), h("span", {}, group ? groupTitle : "first screen"), kohya ? h("code", {}, kohya) : null];
    }});

  /** Scroll to a block and hold it in view while what stands above it is still being built, until a person moves. */
  let brought = null;
  atelier.bringIntoView = async (block) => {
    if (brought) brought.abort();
    const {signal} = brought = new AbortController();
    for (const kind of ["wheel", "touchmove", "mousedown", "keydown"]) addEventListener(kind, () => brought.abort(), {signal, capture: true});
    for (let n = 0; n < 30 && !signal.aborted; n += 1) {
      const place = block.getBoundingClientRect();
      if (!n || place.bottom < 0 || place.top > innerHeight) block.scrollIntoView({block: "center"});
      await new Promise((done) => setTimeout(done, 50));
    }
    if (!signal.aborted) brought.abort();
  };
  atelier.on("click", "button[data-field]", (lead) => atelier.goToField(lead.dataset.field));
  /** Open the group that holds a field, bring it into view and mark it for a moment. */
  atelier.goToField = async (path, focus = true) => {
    const facts = atelier.fields[path];
    if (!facts) return;
    const search = byId("field-search");
    if (search) search.dispatchEvent(new Event("atelier-found"));  // it hides the groups that it has not found
    atelier.goTo(facts.tab);
    const block = await atelier.whenFound(() => byId(facts.id), 1500);
    if (!block) return;
    if (facts.tab !== "Train") return block.scrollIntoView({block: "center"});
    for (let place = block.closest(".folded"); place; place = place.parentElement.closest(".folded")) open(place.previousElementSibling);
    if (block.classList.contains("is-idle")) { const card = block.closest(".group"); if (card) { card.classList.add("show-idle"); paintFolded(card, facts.group); } }
    atelier.bringIntoView(block);
    block.classList.remove("flash"); void block.offsetWidth; block.classList.add("flash");
    const input = block.querySelector("input:checked") || block.querySelector("input, select, textarea");
    if (input && focus) input.focus({preventScroll: true});
  };

  /* ---- the note about a field ---- */

  let note = null, noteOf = null;  // noteOf: the field that describes itself by the note, after F1
  const openNote = (button, field = null) => {
    const {path} = button.parentElement.dataset, facts = atelier.fields[path];
    closeNote();
    const rows = [["Default", facts.default], ["Preset", state.changed[path] !== undefined ? state.changed[path] : null], ["Allowed", facts.range],
      ["Unit", facts.unit], ["Cost", facts.costs], ["sd-scripts", facts.kohya], ["Command line", `--${path}`], ["Source", facts.source]];
    note = h("div", {class: "field-note", role: "tooltip", id: "field-note"}, h("strong", {}, facts.title), h("p", {}, facts.help),
      h("dl", {}, rows.filter((row) => row[1]).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])));
    document.querySelector("main").append(note);
    button.setAttribute("aria-describedby", "field-note");
    if (field) { noteOf = field; field.setAttribute("aria-describedby", `${field.getAttribute("aria-describedby") || ""} field-note`.trim()); }
    /* Below the field, else above it: what it says and holds stays in sight. */
    const place = button.parentElement.getBoundingClientRect(), own = note.getBoundingClientRect();
    const left = Math.max(8, Math.min(button.getBoundingClientRect().left - 12, innerWidth - own.width - 24));
    const above = place.bottom + 6 + own.height >= innerHeight && place.top - own.height - 6 >= 0;
    note.style.left = `${left + scrollX}px`;
    note.style.top = `${(above ? place.top - own.height - 6 : place.bottom + 6) + scrollY}px`;
  };
  const closeNote = () => {
    if (noteOf) noteOf.setAttribute("aria-describedby", noteOf.getAttribute("aria-describedby").replace(/ ?field-note$/, ""));
    if (note) note.remove();
    note = noteOf = null;
  };
  for (const kind of ["mouseover", "focusin"]) document.addEventListener(kind, (event) => {
    const button = event.target.closest && event.target.closest(".field-help");
    /* Asked for with F1 it stays while the field has the focus: a page that scrolls under a resting mouse is a mouseover too. */
    if (kind === "mouseover" && noteOf && noteOf === document.activeElement) return;
    if (button) openNote(button); else if (note && !event.target.closest(".field-note")) closeNote();
  });
  addEventListener("keydown", (event) => {
    if (event.key === "Escape") closeNote();
    if (event.key !== "F1") return;
    const block = event.target.closest && event.target.closest(".field[data-path]");
    const button = block && block.querySelector(":scope > .field-help");
    if (!button) return;
    event.preventDefault();
    event.stopPropagation();  // a list would open
    if (note && noteOf === event.target) closeNote(); else openNote(button, event.target);
  }, true);
  atelier.on("click", ".field-help", (button, event) => { event.preventDefault(); openNote(button); });

  /* ---- the JSON pane ---- */

  atelier.jsonEdited = () => { const pane = byId("json-text"); return !!pane && pane.dataset.base !== undefined && pane.value !== pane.dataset.base; };
  let sentJson = "";
  const paintJson = () => {
    const pane = byId("json-text");
    if (!pane) return;
    const edited = pane.dataset.base !== undefined && pane.value !== pane.dataset.base;
    const applied = pane.dataset.sent && pane.dataset.sent === state.json_applied;
    if (applied) delete pane.dataset.sent;
    if (!edited || (applied && pane.value === sentJson)) pane.value = pane.dataset.base = state.json;
    else if (applied) pane.dataset.base = state.json;  // typed on since: an edit of what was applied
    show(byId("json-edited"), pane.value !== pane.dataset.base);
    text(byId("json-edited"), pane.dataset.base === state.json ? "Edited, not applied yet" : "Edited, not applied yet. The form has changed since.");
    const dirty = pane.value !== pane.dataset.base;
    for (const button of document.querySelectorAll("#json-pane [data-json]")) button.disabled = !dirty;
    const problems = byId("json-problems"), list = state.json_problems || [];
    if (atelier.differs(problems, list)) problems.replaceChildren(...(list.length ? [atelier.problems(list)] : []));
  };

  /* ---- messages ---- */

  const revisionOf = (stamp) => Number((stamp || "").split(":")[1]) || 0;
  atelier.parts.form = (data) => {
    const revision = revisionOf(data.stamp), sameServer = (atelier.stamp || data.stamp).split(":")[0] === data.stamp.split(":")[0];
    /* Messages may overtake each other: an older one than what is shown is dropped. */
    if (sameServer && revision < revisionOf(atelier.stamp)) { delete atelier.have.form; return; }
    state = {...state, ...data};
    atelier.stamp = data.stamp;
    atelier.session = data.session;
    paintAll();
    const panel = byId("said");
    if (panel && panel.dataset.undo && panel.dataset.undo !== state.undo) panel.hidden = true;  // it is no longer the last step
    if (data.names) atelier.parts.names(data.names);
    if (data.said) atelier.say(data.said);
    if (data.notice) atelier.say({id: data.notice, kind: "error", text: data.notice});
  };

  atelier.whenReady(() => {
    new MutationObserver(() => { if (!form || !form.isConnected) paintAll(); }).observe(document.querySelector("#tabs"), {childList: true, subtree: true});
    paintAll();
    attr(byId("start"), "title", "Ctrl+Enter");
  });
  const closeMenu = (menu) => { if (menu) { menu.open = false; menu.querySelector("summary").focus(); } };
  const openMenu = () => document.querySelector("#preset-bar details.menu[open]");
  atelier.on("click", "[data-do]:not(:disabled)", ({dataset}, event) => { event.preventDefault(); closeMenu(openMenu()); (chores[dataset.do] || atelier.act)(dataset.do); });
  document.addEventListener("click", ({target}) => { const menu = openMenu(); if (menu && !menu.contains(target)) menu.open = false; });
  atelier.on("click", "[data-json]", ({dataset}) => {
    const pane = byId("json-text");
    if (dataset.json === "apply") { pane.dataset.sent = String(Date.now()); sentJson = pane.value; atelier.act("json", {text: sentJson, token: pane.dataset.sent}); }
    else { pane.value = pane.dataset.base = state.json; state.json_problems = []; paintJson(); }
  });
  atelier.on("input", "#json-text", paintJson);
  document.addEventListener("focusin", beginSearch);
  atelier.on("change", "#preset-file", (input) => { atelier.takeFiles(input.files); input.value = ""; });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey && event.altKey && ["z", "y"].includes(event.key.toLowerCase()) && atelier.openTab() === "Train") {
      event.preventDefault();
      atelier.act(event.key.toLowerCase() === "z" ? "undo" : "redo");
    }
    if ((event.ctrlKey || event.metaKey) && event.key === "Enter" && !event.repeat && atelier.openTab() === "Train" && !document.querySelector("dialog[open]")) { const start = byId("start"); if (start) start.click(); }
    if (event.key === "Escape") closeMenu(event.target.closest?.("details.menu[open]") || openMenu());
  });
})();
