"use strict";
/* Settings of other programs (tabs/train/imports.py): files and texts that are dropped, pasted or chosen on Train and Runs, the report
   of what became of them, and the exports for sd-scripts and kohya_ss. */
(() => {
  const atelier = window.atelier, {h, text, byId} = atelier;
  const TABS = ["Train", "Runs"], MOST_HEADER = 4_000_000, MOST_FILES = 20;  // bytes of the header of a LoRA, files opened together
  const MOST = atelier.longest.preset, MOST_FOREIGN = atelier.longest.import;  // bytes of a preset, characters of another program's text
  const LOOKS_FOR = `a preset of at most ${Math.floor(MOST / 1e6)} MB, or the command line, script, config or preset of another trainer of at most ${MOST_FOREIGN.toLocaleString("en-US")} characters`;
  const LOOKS_FOR_LORA = `a LoRA whose header has at most ${MOST_HEADER / 1e6} MB`;
  const WIDE = {"255,254": "utf-16le", "254,255": "utf-16be"};  // how Windows writes texts too
  /* A pasted text with options, a path of a script, TOML, YAML or JSON. */
  const SETTINGS = /^[ \t]*[{[]|^(job|config)[ \t]*:|(^|\s)--[a-z]\w{2,}|^[ \t]*[\w.]+[ \t]*=|\.py\b/m;
  let sent = {}, count = 0, state = {values: {}}, card = null, dialog = null;

  /* ---- opening ---- */

  /** The dialog stays open with its text until that is imported, and shows what is wrong. */
  const refuse = (words) => atelier.say({kind: "error", title: "Not opened; nothing changed.", text: words, about: "drop"});
  const isWeights = (name) => /\.safetensors$/i.test(name);
  const tooLarge = (what) => refuse(`${what} is too large: looked for ${isWeights(what) ? LOOKS_FOR_LORA : LOOKS_FOR}.`);
  /** Files, {file, text}, of which the others are named by one with settings; or a pasted text without a name. */
  const send = (files, choice = "") => {
    const large = files.find(({file, text}) => text.length > (isWeights(file) ? MOST_HEADER : MOST));
    if (large) return tooLarge(large.file || "The text");
    if (files.reduce((sum, {text}) => sum + text.length, 0) > MOST_HEADER) return refuse("These files are too large together: open the settings with fewer of them.");
    sent = {...files[0], more: files.slice(1), choice, token: `${atelier.session}-${Date.now()}-${count += 1}`};
    atelier.act("file", {...sent});
  };
  const filesOf = ({file, text, more}) => [{file, text}, ...more];
  /** The header of a LoRA: nothing else of its file is read. */
  const headerOf = async (file) => {
    const size = Number(new DataView(await file.slice(0, 8).arrayBuffer()).getBigUint64(0, true));
    return file.slice(8, 8 + Math.min(size, MOST_HEADER + 1)).text();
  };
  const textOf = async (file) => {
    const bytes = await file.arrayBuffer(), wide = WIDE[new Uint8Array(bytes.slice(0, 2)).join()];
    return new TextDecoder(wide || "utf-8").decode(bytes);
  };
  atelier.takeFiles = async (chosen) => {
    const read = [], files = [...chosen];
    if (files.length > MOST_FILES) return refuse(`These are ${files.length} files: open the settings and the files that they name, at most ${MOST_FILES}.`);
    for (const file of files) {
      if (!isWeights(file.name) && file.size > MOST) return tooLarge(file.name);
      try { read.push({file: file.name, text: await (isWeights(file.name) ? headerOf : textOf)(file)}); } catch (error) { return refuse(`${file.name} cannot be read: ${error.message}.`); }
    }
    if (read.length) send(read);
  };

  const isFile = (event) => TABS.includes(atelier.openTab()) && event.dataTransfer && [...event.dataTransfer.types].includes("Files") && !event.target.closest?.("input[type=file]");
  document.addEventListener("dragover", (event) => { if (isFile(event)) event.preventDefault(); });
  document.addEventListener("drop", (event) => { if (isFile(event)) { event.preventDefault(); atelier.takeFiles(event.dataTransfer.files); } });
  document.addEventListener("paste", (event) => {
    const isField = event.target.closest && event.target.closest("input, textarea, select, [contenteditable]");
    if (isField || !TABS.includes(atelier.openTab()) || document.querySelector("dialog[open]")) return;
    const {files} = event.clipboardData, pasted = event.clipboardData.getData("text/plain");
    if (!files.length && !SETTINGS.test(pasted)) return;
    event.preventDefault();
    if (files.length) atelier.takeFiles(files); else send([{file: "", text: pasted}]);
  });

  const button = (words, onclick, kind = "") => h("button", {type: "button", class: `btn ${kind}`, onclick}, words);
  const openDialog = () => {
    const pasted = h("textarea", {class: "text", id: "import-text", rows: 8, spellcheck: "false", autocomplete: "off"});
    const file = h("input", {type: "file", id: "import-file", multiple: true, onchange: () => { atelier.takeFiles(file.files); file.value = ""; }});
    dialog = atelier.modelsDialog("Import settings",
      h("p", {class: "hint"}, "Opens the settings of kohya_ss, sd-scripts, OneTrainer, ai-toolkit, SimpleTuner, LoRA Easy Training Scripts or a LoRA file in the form, and lists what differs here. Choose files that it names, as of concepts and samples, together with it. You can also drop files on this page, or paste text."),
      h("label", {class: "import-source"}, h("span", {}, "Files"), file),
      h("label", {class: "import-source"}, h("span", {}, "Or a command line, TOML, YAML, JSON, or the path of a file where Atelier runs"), pasted),
      h("div", {class: "buttons"}, button("Import text", () => { if (pasted.value.trim()) send([{file: "", text: pasted.value}]); else pasted.focus(); }, "primary")));
    file.focus();
  };
  const choose = (choices) => {
    const files = filesOf(sent);
    const own = atelier.modelsDialog("Which one?", h("p", {}, "There is more than one way to read this text. Choose what to import."),
      h("div", {class: "import-choices"}, choices.map((choice) => button(choice, () => { own.close(); send(files, choice); }))));
    own.querySelector(".import-choices button").focus();
  };

  /* ---- the report ---- */

  const titleOf = (path) => atelier.fields[path] ? atelier.fields[path].title : path;
  const leads = (settings) => settings.flatMap((path, n) => [n ? ", " : "", h("button", {type: "button", class: "link", "data-field": path}, titleOf(path))]);
  /** A sentence in which paths of settings are links with their titles. */
  const linked = (why) => why.split(/([a-z_]+\.[a-z_]+)/).map((part) => atelier.fields[part] ? leads([part]) : part).flat();
  const rowOf = (kind) => ({key, value, settings = [], why}) => {
    const isDefault = kind === "default", fate = isDefault && settings.length ? ` = ${value}` : "";
    return h("li", {},
      key ? h("span", {}, h("code", {}, key), isDefault ? " not given" : ` ${value}`) : null,
      h("span", {}, leads(settings), fate, settings.length && why ? ": " : "", linked(why)));
  };
  const partOf = ({kind, title, folded, rows, more}) => {
    const head = `${title} (${rows.length + more})`;
    const list = h("ul", {class: "report-rows"}, rows.map(rowOf(kind)), more ? h("li", {class: "hint"}, `${more} more`) : null);
    return folded ? h("details", {}, h("summary", {}, head), list) : h("div", {}, h("h4", {}, head), list);
  };
  const FOLDERS = "dataset.sources", WRITTEN = ["logging.logging_dir", "logging.console_log_file", "saving.copy_to"];
  const missingOf = ({field, text: path, looks, nearby}) => {
    const take = (chosen) => field === FOLDERS ? atelier.act("found_folder", {before: path, now: chosen}) : atelier.edit({[field]: chosen});
    return h("li", {"data-missing": field, "data-path": path},
      h("span", {}, leads([field]), " ", h("code", {}, path)),
      h("span", {}, (nearby || []).map((each) => h("button", {type: "button", class: "btn small", onclick: () => take(each)}, `Use ${each}`)),
        h("button", {type: "button", class: "btn small", "aria-label": `Browse: ${titleOf(field)}`, onclick: () => atelier.browse(looks, path, take)}, "Browse"),
        WRITTEN.includes(field) ? h("button", {type: "button", class: "btn small", "aria-label": `Leave empty: ${titleOf(field)}`, onclick: () => take("")}, "Leave empty") : null,
        h("span", {class: "hint", role: "status"})));
  };
  const TITLES = {lora: "LoRA", dreambooth: "Dreambooth", finetune: "Finetuning", ti: "Textual Inversion"};  // of kohya_ss' tabs
  const choicesOf = ({choices, choice}) => choices.length > 1 && state.imported && state.imported.token === sent.token ? h("label", {class: "check"}, "Read as",
    h("select", {onchange: ({target}) => send(filesOf(sent), target.value)}, choices.map((each) => h("option", {value: each, selected: each === choice}, TITLES[each] || each)))) : null;

  const close = () => { if (card) card.remove(); card = null; };
  /** Show the report above the form. */
  const showReport = async () => {
    const found = await atelier.question("import", {});
    if (found.lost) return atelier.complain(found.problems);
    close();
    atelier.goTo("Train");
    const closes = () => { close(); document.querySelector("#preset-bar summary").focus(); };
    card = h("section", {class: "card", id: "import-report", tabindex: "-1", "aria-labelledby": "import-title", "data-about": state.imported ? state.imported.about : ""},
      h("div", {class: "card-head"}, h("h3", {id: "import-title"}, found.title), h("span", {class: "hint"}, found.summary), h("span", {class: "grow"}),
        h("button", {type: "button", class: "btn quiet", "aria-label": "Close the report", onclick: closes}, "Close")),
      h("div", {class: "buttons"}, choicesOf(found),
        h("label", {class: "check"}, h("input", {type: "checkbox", id: "import-compatible", "aria-describedby": "import-compatible-info",
          onchange: ({target}) => atelier.edit({"model.compatibility": target.checked ? "sd-scripts-0.10" : "none"})}), "Compute as sd-scripts"),
        h("span", {class: "hint", id: "import-compatible-info"}, "Loss, noise, captions and samples as sd-scripts computes them. Only to compare, or to reproduce old results.")),
      found.missing.length ? h("div", {}, h("h4", {}, `Not on this machine (${found.missing.length})`), h("ul", {class: "report-rows"}, found.missing.map(missingOf))) : null,
      found.advice.length ? atelier.problems(found.advice) : null,
      found.parts.map(partOf));
    place();
  };
  /** Put the report in its place and the keyboard on it, once the form is there and takes it. */
  const place = (tries = 60) => {
    const first = document.querySelector("#train-form .first");
    if (!card) return;
    if (first && !card.isConnected) { first.before(card); update(); }
    card.focus({preventScroll: true});
    if (document.activeElement === card) card.scrollIntoView({block: "start"});
    else if (tries) setTimeout(() => place(tries - 1), 50);
  };
  /** What has changed in the form since: the switch, and files that were found. */
  const update = () => {
    if (!card) return;
    if (!atelier.isUnsaved("model.compatibility")) byId("import-compatible").checked = state.values["model.compatibility"] !== "none";
    for (const row of card.querySelectorAll("[data-missing]")) {
      const {missing, path} = row.dataset, folders = missing === FOLDERS ? (state.imported || {}).folders || [] : [state.values[missing]];
      const now = folders.join(", "), found = !folders.includes(path);
      row.classList.toggle("found", found);
      text(row.querySelector("[role=status]"), found ? `Now ${now || "empty"}` : "");
    }
  };
  /** Called with each state of the form. */
  atelier.paintImport = (now) => {
    state = now;
    const {opened, imported} = state;
    if (opened && opened.token === sent.token && !sent.answered) {
      sent.answered = true;
      if (!opened.problems.length) { atelier.succeeded("drop"); if (dialog) dialog.close(); }
      if (opened.choices.length) choose(opened.choices);
      else if (imported && imported.token === sent.token) showReport();
    } else if (card && (!imported || imported.about !== card.dataset.about)) close();
    if (card && card.isConnected) update();
  };

  /* ---- the export ---- */

  const showExport = async (program) => {
    await atelier.settle();
    const found = await atelier.question("export", {to: program});
    if (found.problems) return atelier.complain(found.problems, "Not exported");
    const {name, command, toml, preset, tab, dataset, lost, advice} = found, content = command || preset;
    const copy = h("button", {type: "button", class: "btn", "data-copy": content}, "Copy");
    const save = (words, file, written) => written ? button(words, () => atelier.download(file, written)) : null;
    atelier.modelsDialog(`Export for ${program}`,
      h("textarea", {class: "text", rows: 6, readonly: true, "aria-label": preset ? "Preset" : "Command line", value: content}),
      h("div", {class: "buttons"}, copy, save("Preset", `${name}.json`, preset), save("Command line", `${name}.sh`, command && `${command}\n`), save("Config file", `${name}.toml`, toml), save("Dataset config", `${name}_dataset.toml`, dataset)),
      h("p", {class: "hint"}, preset ? `The preset of the ${tab} tab, and the folders: choose their file in its field Dataset config file.` : "The command line, the same settings for --config_file, and the folders for --dataset_config, which both name: run the command where that file is."),
      lost.length ? h("div", {}, h("h3", {}, `Not the same in ${program} (${lost.length})`), h("ul", {class: "report-rows"},
        lost.map(({field, here, there}) => h("li", {}, h("span", {}, titleOf(field), " ", h("code", {}, field)), h("span", {}, `${here}, there ${there}`))))) : null,
      advice.length ? atelier.problems(advice) : null);
    copy.focus();
  };

  Object.assign(atelier.chores, {import: openDialog, report: showReport, export: () => showExport("sd-scripts"), export_kohya_ss: () => showExport("kohya_ss")});
})();
