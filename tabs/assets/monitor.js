"use strict";
/* The Monitor tab: draws the parts of the tick. Each part touches only what changed, so images never flicker. */
(() => {
  const atelier = window.atelier, {h, text, show, attr, byId, clock} = atelier;
  const STATES = {running: "training", paused: "paused", waiting: "waiting", done: "done", stopped: "stopped", failed: "failed", interrupted: "interrupted", damaged: "damaged"};
  /* What each button says, says while it is done, and its place in the row: what a run offers while it goes on and what it offers
     afterwards have the same places. */
  const ACTIONS = {
    sample: ["Sample now", "Sampling ...", 1], save: ["Save now", "Saving ...", 2], pause: ["Pause", "Pausing ...", 3], resume: ["Resume", "Resuming ...", 3],
    stop: ["Stop and save", "Stopping ...", 4], cancel: ["Remove from queue", "Removing ...", 4],
    generate: ["Generate with it", "Opening ...", 1], continue: ["Resume training", "Adding ...", 2], settings: ["Use its settings", "Loading ...", 3],
    grid: ["Compare checkpoints", "", 4],  // which only leads there
  };
  const ENDED = ["generate", "continue", "settings", "grid"];
  const ROWS = {running: ["sample", "save", "pause", "stop"], paused: ["sample", "save", "resume", "stop"], waiting: ["cancel"]};
  const charts = {};
  let run = null, samples = null;
  atelier.chosenRun = "";

  atelier.chooseRun = (name, quiet) => {
    atelier.chosenRun = name || "";
    for (const part of ["run", "loss", "watch", "rates", "samples", "log", "files", "best", "verdict", "gone"]) delete atelier.have[part];
    if (!quiet) atelier.keepAddress();
  };
  /** A run that is stopped stays in view, also when the next job begins, until Monitor is left or another one is started. */
  let stopped = "";
  atelier.stay = (name) => {
    if (!run || run.run !== name || atelier.chosenRun || atelier.openTab() !== "Monitor") return;
    atelier.chosenRun = stopped = name;
    atelier.keepAddress(true);
  };
  /** Called when another tab opens: a visit elsewhere may be shorter than any interval. */
  atelier.tabOpened = () => {
    const open = atelier.openTab();
    if (!stopped || !open || open === "Monitor") return;
    if (stopped === atelier.chosenRun) atelier.chooseRun("", true);
    stopped = "";
  };
  /* Parts that a tab shows are asked for anew when it opens: it may have been built only then. */
  let openBefore = "";
  setInterval(() => {
    const open = atelier.openTab();
    if (open === openBefore) return;
    openBefore = open;
    const own = {Monitor: ["run", "begins", "runs", "queue", "loss", "watch", "rates", "samples", "log", "files", "best", "verdict"], Train: ["form", "checks", "forecast", "works", "catalog"], Runs: ["queue"], Tools: ["works", "catalog", "tool_files", "keys"]}[open] || [];
    for (const part of own) delete atelier.have[part];
  }, 100);

  const begun = () => {
    const board = byId("monitor");
    if (!board) return false;
    if (!board.dataset.begun) {
      board.dataset.begun = "1";
      charts.loss = new atelier.Chart(byId("loss-chart"), {label: "Loss"});
      charts.rate = new atelier.Chart(byId("rate-chart"), {label: "Learning rate"});
      for (const [name, label] of [["corrected", "Loss relative to timesteps"], ["gradient", "Gradient norm"], ["weight", "Weight norm"]])
        charts[name] = new atelier.Chart(byId(`${name}-chart`), {label, log: name === "gradient"});
      charts.effect = new atelier.Chart(byId("effect-chart"), {label: "Control effect"});
      charts.loss.follow(byId("loss-log"));
      byId("run-tensorboard").addEventListener("click", (event) => { atelier.once(event.target); opening = run.run; atelier.command("tensorboard", {run: run.run, ask: atelier.ask()}); });
      byId("run-choice").addEventListener("change", (event) => { atelier.chooseRun(event.target.value); });
    }
    return true;
  };

  /* ---- the run ---- */

  atelier.parts.run = (data) => {
    if (!begun()) return;
    const before = run;
    run = data;
    /* Between two runs there is none: the queue below keeps its place in the window where it has the keyboard. */
    const held = !!run === byId("monitor-run").hidden && document.querySelector("#monitor .queue-card :focus"), top = held && held.getBoundingClientRect().top;
    show(byId("monitor-empty"), !run);
    show(byId("monitor-run"), !!run);
    show(byId("run-log-card"), !!run);
    if (held) setTimeout(() => scrollBy(0, held.getBoundingClientRect().top - top));  // once the other parts are drawn too
    if (!run) return;
    if (byId("run-title").textContent !== run.title) byId("run-title").replaceChildren(...atelier.parted(run.title));
    text(byId("run-person"), run.person ? `of ${run.person}` : "");
    text(byId("run-state"), run.state === "stopped" && run.step ? "stopped and saved" : STATES[run.state] || run.state);
    byId("run-state").className = `chip state-${run.state}`;
    text(byId("run-epoch"), run.epochs ? `epoch ${run.epoch} of ${run.epochs}` : "");
    text(byId("run-step"), run.total ? `step ${run.step} of ${run.total}` : "");
    text(byId("run-pace"), run.step ? atelier.pace(run.seconds_per_step) : "");
    const live = run.state === "running" || run.state === "paused";
    text(byId("run-left"), run.state === "running" && run.step ? `${run.eta_seconds ? `${clock(run.eta_seconds)} left` : ""}` : run.seconds ? (live ? `${clock(run.seconds)} so far` : `took ${clock(run.seconds)}`) : "");
    const share = run.total ? Math.min(1, run.step / run.total) : 0, bar = byId("run-bar");
    bar.firstElementChild.style.width = `${(share * 100).toFixed(2)}%`;
    bar.className = `progress state-${run.state}` + (run.state === "running" && !run.step ? " unknown" : "");
    attr(bar, "aria-valuenow", Math.round(share * 100));
    text(byId("run-stage"), stageWords());
    if (!before || before.run !== run.run || before.state !== run.state || JSON.stringify([before.actions, before.next]) !== JSON.stringify([run.actions, run.next])) drawActions();
    markChoice();
  };

  /** One line below the bar: what is being done, or what can be done now. */
  const stageWords = () => {
    if (run.state === "waiting") return atelier.sentence(run.waits);
    if (run.state === "stopped" && run.step) return `${atelier.sentence(run.message || `Stopped at step ${run.step}`)}${run.actions.includes("continue") ? " Resume training continues from there." : ""}`;
    if (run.state === "stopped" || run.state === "interrupted") return [(run.state === "stopped" && run.message) || `${STATES[run.state]} at step ${run.step}`, run.next && run.next.about].filter(Boolean).map(atelier.sentence).join(" ");
    if (run.state === "paused") return run.stage && run.stage !== "training" ? run.stage : "Resume continues from here.";
    if (run.state === "failed") return run.step ? `Failed at step ${run.step}.` : "Failed before the first step.";
    return run.state === "running" ? run.stage : run.message || "";
  };

  /* Every action has its place, whether the run's state has it or not. */
  const drawActions = () => {
    const row = byId("run-actions"), here = ROWS[run.state] || ENDED;
    const main = run.state === "paused" ? "resume" : here !== ENDED ? "" : run.next ? run.next.name : "generate";
    if (!row.children.length) row.append(...Object.keys(ACTIONS).map(actionButton));
    for (const button of row.children) {
      const name = button.dataset.action, offered = run.actions.includes(name);
      button.dataset.entry = run.run;
      atelier.slot(button, here.includes(name));
      button.disabled = !offered;
      button.classList.toggle("primary", offered && name === main);
      says(button, false);
      const next = offered && run.next && run.next.name === name ? run.next : null;
      text(button.firstElementChild, next ? next.text : ACTIONS[name][0]);
      const others = name === "continue" && run.next && run.next.name === name;  // the run could, so its user may not
      attr(button, "title", offered ? next && next.about : others ? `The run of ${run.person || "the owner"}` : WHY_NOT[name]);
    }
    const board = byId("run-tensorboard");
    show(board, run.actions.includes("tensorboard"));
    if (board.dataset.entry !== run.run) { board.disabled = false; board.dataset.entry = run.run; }
  };
  const actionButton = (name) => {
    const [words, busy, place] = ACTIONS[name];
    const button = h("button", {type: "button", class: "btn slot off", "data-action": name, "data-place": place}, h("span", {}, words), h("span", {class: "off"}, busy));
    button.addEventListener("click", () => press(button, name));
    return button;
  };
  /** Show what a button does, or that it is being done; it is as wide as the longer of both. */
  const says = (button, busy) => { atelier.slot(button.firstElementChild, !busy); atelier.slot(button.lastElementChild, busy); };
  /** Why a run does not offer an action. */
  const WHY_NOT = {...Object.fromEntries([...ROWS.running, "resume", "cancel"].map((name) => [name, "This is another user's job."])), continue: "This run is finished. Runs can train it longer.", generate: "This run has saved no file.", grid: "This run has saved no file."};
  const press = (button, name) => {
    if (button.ariaDisabled) return;
    const pressed = run.run;
    if (name === "grid") return atelier.toVerdict();  // the button there says how many images it makes, and how long they take
    /* Sampling and saving leave the state as it is: the button comes back by itself, and keeps the keyboard meanwhile. */
    const stays = ["sample", "save", "generate"].includes(name);
    atelier.once(button, () => { attr(button, "aria-disabled", null); if (run && run.run === pressed && run.actions.includes(name)) { button.disabled = false; says(button, false); } }, stays ? 3000 : 20000);
    if (stays) { button.disabled = false; attr(button, "aria-disabled", "true"); }
    says(button, true);
    if (name === "save") { saving = pressed; atelier.hear(ACTIONS.save[1]); }
    if (name === "stop") atelier.stay(pressed);
    atelier.command(name, {run: run.run, entry: run.entry, waits: name === "cancel", ask: atelier.ask()});
    if (name === "settings") setTimeout(() => atelier.goTo("Train"), 250);
  };

  let opening = "";
  atelier.parts.tensorboard = (data) => {
    if (!opening || data.run !== opening || !data.ready) return;
    opening = "";
    byId("run-tensorboard").disabled = false;
    const opened = window.open(data.address, "_blank");
    if (opened) opened.opener = null;
    else atelier.say({kind: "done", text: "TensorBoard is running.", open: [data.address, "Open TensorBoard"]});
  };

  const markChoice = () => {
    const choice = byId("run-choice"), wanted = atelier.chosenRun || "";
    if (choice && choice.value !== wanted && document.activeElement !== choice) choice.value = wanted;
  };
  atelier.parts.runs = (names) => {
    if (!begun()) return;
    const choice = byId("run-choice");
    choice.replaceChildren(h("option", {value: ""}, "latest"),
      ...names.map((item) => h("option", {value: item.name}, `${item.title}, ${STATES[item.state] || item.state}, ${item.name.replace(/_.*/, "").replace(/^(\d{4})(\d\d)(\d\d)-(\d\d)(\d\d)(\d\d)$/, "$1-$2-$3 $4:$5")}`)));
    markChoice();
  };
  atelier.parts.gone = (problems) => { atelier.complain(problems); atelier.chooseRun("", true); atelier.keepAddress(true); };  // Back does not lead to it again

  /** Before the first run stands: one that was started is being prepared, else there is none. */
  atelier.parts.begins = (next) => {
    const empty = byId("monitor-empty");
    if (!empty) return;
    text(empty.querySelector("strong"), next ? next.title : "No runs yet.");
    text(empty.querySelector("span"), next ? atelier.sentence(next.words) : "Start with the starter preset: it trains a small LoRA in a few minutes.");
    show(empty.querySelector("a"), !next);
  };

  /* ---- charts ---- */

  atelier.parts.loss = (data) => {
    if (!begun()) return;
    const held = data.validation, lines = [{name: "loss", values: data.raw, kind: "raw"}, {name: "smoothed", values: data.smooth, kind: "smooth"}];
    const both = held.train.some((value) => value !== null);
    const points = held.steps.length ? [{name: ON[held.on], steps: held.steps, values: held.loss, kind: "third"}, ...(both ? [{name: "train", steps: held.steps, values: held.train, kind: "second"}] : [])] : [];
    text(byId("loss-on"), `${ON[held.on]} images${held.on === "training" ? " (fixed noise)" : ""}`);
    atelier.slot(byId("loss-train"), both);
    charts.loss.set({steps: data.steps, total: data.total, markers: data.saves, lines, points});
    atelier.slot(byId("loss-validated"), points.length > 0);
    text(byId("loss-gap"), points.length ? gapWords(held) : "");
    const moves = held.effect.some((value) => value !== null);
    show(byId("effect"), moves);
    if (moves) charts.effect.set({steps: held.steps, total: data.total, lines: [{name: "effect", values: held.effect, kind: "smooth"}]});
  };
  /** The newest validation in words: a gap that grows while the other loss falls is overfitting. */
  const ON = {held_out: "held-out", training: "training"};
  const gapWords = (held) => {
    const last = held.steps.length - 1, best = held.loss.indexOf(Math.min(...held.loss.filter((value) => value !== null)));
    if (held.loss[last] === null) return `Step ${held.steps[last]}: the loss on ${held.images} ${ON[held.on]} images is NaN or infinite.`;
    if (held.gap[last] === null) return `Step ${held.steps[last]}: ${atelier.loss(held.loss[last])} on ${held.images} ${ON[held.on]} images. Lowest: ${atelier.loss(held.loss[best])} at step ${held.steps[best]}.`;
    const grown = last > 0 && held.gap[last] > held.gap[0] ? `, ${atelier.loss(held.gap[0])} at first` : "";
    return `Step ${held.steps[last]}: ${atelier.loss(held.loss[last])} on ${held.images} validation images, ${atelier.loss(held.train[last])} on training images. Gap ${atelier.loss(held.gap[last])}${grown}. Lowest validation loss: ${atelier.loss(held.loss[best])} at step ${held.steps[best]}.`;
  };

  atelier.parts.watch = (data) => {
    if (!begun()) return;
    const any = data.corrected.steps.length || data.bands.length || data.gradient.steps.length;
    if (!any) return text(byId("watch-words"), "Available after the first steps.");
    for (const [name, part, words] of [["corrected", data.corrected, "compared"], ["gradient", data.gradient, "gradient"], ["weight", data.weights, "weights"]])
      charts[name].set({steps: part.steps, total: data.total, lines: [{name: words, values: part.values, kind: "smooth"}]});
    const worst = data.images[0];
    text(byId("watch-words"), worst && worst.loss > 1.25 ? worseWords(data.images.filter((one) => one.loss > 1.25).length) : "losses by timestep and by image, gradient and weights");
    drawBands(data.bands);
    const table = byId("watch-images");
    if (!atelier.differs(table, data.images)) return;
    table.replaceChildren(h("thead", {}, h("tr", {}, h("th", {scope: "col"}, "Image"), h("th", {scope: "col", class: "num"}, "Loss (1 is average)"), h("th", {scope: "col", class: "num"}, "Seen"))),
      h("tbody", {}, data.images.map((one) => h("tr", {}, h("td", {title: one.of}, one.small ? h("img", {src: one.small, alt: "", loading: "lazy", width: 40, height: 40}) : null, one.name), h("td", {class: "num"}, one.loss === null ? "–" : one.loss.toFixed(2)), h("td", {class: "num"}, String(one.count))))));
  };
  const worseWords = (count) => count === 1 ? "1 image with a high loss" : `${count} images with a high loss`;
  const drawBands = (bands) => {
    const holder = byId("watch-bands"), most = Math.max(...bands.flatMap((band) => [band.mean || 0, band.recent || 0]), 1e-12);
    holder.replaceChildren(...bands.map((band) => h("span", {class: "band", title: `timesteps ${band.from} to ${band.to}: ${atelier.number(band.recent)} recently, ${atelier.number(band.mean)} over the run`},
      h("i", {style: `height:${((band.recent || 0) / most * 100).toFixed(1)}%`}), h("b", {style: `bottom:${((band.mean || 0) / most * 100).toFixed(1)}%`}))));
    attr(holder, "aria-label", bands.length ? `Mean loss at timesteps ${bands.map((band) => `${band.from} to ${band.to}: ${atelier.number(band.recent)}`).join(", ")}` : "Nothing yet");
  };
  atelier.parts.rates = (data) => {
    if (!begun()) return;
    const kinds = ["smooth", "second", "third"];
    const lines = data.lines.map((line, n) => ({name: line.name, values: line.values, kind: kinds[n % kinds.length]}));
    charts.rate.set({steps: data.steps, total: data.total, lines});
    byId("rate-legend").replaceChildren(...lines.flatMap((line) => [h("span", {}, h("i", {class: line.kind}), line.name), " "]));
  };

  /* ---- samples: prompts down, time across ---- */

  const SAMPLE_HEAD = 32, SAMPLE_ROW = matchMedia("(max-width: 620px)").matches ? 94 : 134;  // pixels: the place of samples that are still to come is kept free
  const stepName = (step) => samples.names[step];
  atelier.parts.samples = (data) => {
    if (!begun()) return;
    const holder = byId("samples");
    const other = !samples || samples.run !== data.run;
    samples = data;
    atelier.slot(byId("samples-hint"), data.rows.length > 0);
    holder.style.minHeight = `${SAMPLE_HEAD + SAMPLE_ROW * data.expected}px`;
    if (!data.rows.length) { holder.replaceChildren(h("p", {class: "hint"}, "No samples yet. Write sample prompts in Train, or press Sample now while it trains.")); return; }
    let table = holder.querySelector("table");
    if (!table || other) {
      table = h("table", {class: "samples"}, h("thead", {}, h("tr", {}, h("th", {scope: "col"}, "Prompt"))), h("tbody", {}));
      holder.replaceChildren(h("div", {class: "samples-scroll", tabindex: "0", role: "group", "aria-label": "Samples"}, table));
    }
    const scroll = holder.firstElementChild, atEnd = scroll.scrollLeft + scroll.clientWidth >= scroll.scrollWidth - 8;
    const headRow = table.tHead.rows[0];
    fit(headRow, data.steps, (cell) => cell.dataset.step, (step) => h("th", {scope: "col", "data-step": step}, stepName(step)));
    data.rows.forEach((row, n) => {
      let line = table.tBodies[0].rows[n];
      if (!line) { line = h("tr", {}, h("th", {scope: "row"}, "")); table.tBodies[0].append(line); }
      text(line.cells[0], row.prompt);
      fit(line, data.steps, (cell) => cell.dataset.step, (step) => h("td", {"data-step": step}));
      data.steps.forEach((step, column) => {
        const cell = line.cells[column + 1], image = row.cells[step];
        const url = image ? image.small : "";
        if ((cell.dataset.url || "") === url) return;
        cell.dataset.url = url;
        if (!image) { cell.replaceChildren(); return; }  // the row is another one: a resumed run has other prompts
        cell.replaceChildren(h("button", {type: "button", class: "sample", "aria-label": `${row.prompt}, ${stepName(step)}: enlarge`, onclick: () => enlarge(n, step),
          onfocus: ({target}) => { if (target.matches(":focus-visible")) target.scrollIntoView({block: "nearest", inline: "nearest"}); }},  // browsers leave one that is half in view
          h("img", {src: image.small, alt: `${row.prompt}, ${stepName(step)}`, loading: "lazy", decoding: "async", width: 128, height: 128})));
      });
    });
    while (table.tBodies[0].rows.length > data.rows.length) table.tBodies[0].lastElementChild.remove();
    if (atEnd) scroll.scrollLeft = scroll.scrollWidth;
  };
  /** Keep the cells whose step still stands, add the new ones in order. */
  const fit = (row, steps, stepOf, make) => {
    const known = new Map([...row.cells].slice(1).map((cell) => [Number(stepOf(cell)), cell]));
    const wanted = steps.map((step) => known.get(step) || make(step));
    for (const [step, cell] of known) if (!steps.includes(step)) cell.remove();
    wanted.forEach((cell, n) => { if (row.cells[n + 1] !== cell) row.insertBefore(cell, row.cells[n + 1] || null); });
  };

  /** Two images of one prompt side by side: the first, or without control, and the one that was clicked. Arrow keys move through time and prompts. */
  const enlarge = (index, step) => {
    let row = index, right = step, left = samples.steps.find((at) => at > -2 && samples.rows[row].cells[at]);
    const pane = (side) => {
      const img = h("img", {alt: ""}), choice = h("select", {"aria-label": `Step of the ${side} image`});
      choice.addEventListener("change", () => { if (side === "left") left = Number(choice.value); else right = Number(choice.value); draw(); });
      return {node: h("figure", {}, h("figcaption", {}, choice), img), img, choice};
    };
    const one = pane("left"), two = pane("right"), title = h("h2", {}), about = h("p", {class: "hint"});
    const box = h("dialog", {class: "atelier-dialog enlarged", "aria-label": "Compare samples"},
      h("div", {class: "card-head"}, title, h("span", {class: "grow"}), h("button", {type: "button", class: "btn", onclick: () => box.close()}, "Close")),
      h("div", {class: "pair"}, one.node, two.node), about);
    const draw = () => {
      const line = samples.rows[row];
      text(title, line.prompt);
      for (const [side, at] of [[one, left], [two, right]]) {
        side.choice.replaceChildren(...samples.steps.map((n) => h("option", {value: n}, stepName(n))));
        side.choice.value = String(at);
        const image = line.cells[at];
        attr(side.img, "src", image ? image.whole : null);
        attr(side.img, "alt", image ? `${line.prompt}, ${stepName(at)}` : "no sample");
      }
      show(one.node, samples.steps.length > 1);
      const image = line.cells[right];
      text(about, `${image ? `Seed ${image.seed}. ` : ""}Left and right: steps. Up and down: prompts.`);
    };
    box.addEventListener("keydown", (event) => {
      if (event.target.tagName === "SELECT") return;
      const at = samples.steps.indexOf(right);
      if (event.key === "ArrowLeft" && at > 0) right = samples.steps[at - 1];
      else if (event.key === "ArrowRight" && at < samples.steps.length - 1) right = samples.steps[at + 1];
      else if (event.key === "ArrowUp") row = Math.max(0, row - 1);
      else if (event.key === "ArrowDown") row = Math.min(samples.rows.length - 1, row + 1);
      else return;
      event.preventDefault();
      draw();
    });
    box.addEventListener("click", (event) => { if (event.target === box) box.close(); });
    draw();
    atelier.modal(box);
  };

  /* ---- log, files ---- */

  const hour = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], {hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false});
  atelier.parts.log = (lines) => {
    if (!begun()) return;
    const list = byId("run-log"), atEnd = list.scrollTop + list.clientHeight >= list.scrollHeight - 8;
    const known = [...list.children];
    /* What ended a run stands at the top with its fix: once is enough. */
    const listed = run && run.state === "failed" ? lines.filter((line) => line.level !== "error" || line.text !== run.message) : lines;
    listed.forEach((line, n) => {
      const key = `${line.time}${line.level}${line.text}`;
      if (known[n] && known[n].dataset.key === key) return;
      const item = h("li", {class: line.level, "data-key": key}, h("time", {}, hour(line.time)),
        h("span", {}, line.level === "info" ? null : h("b", {}, line.level === "error" ? "Error: " : "Warning: "), line.text, line.fix ? h("em", {}, ` ${line.fix}`) : null));
      if (known[n]) known[n].replaceWith(item); else list.append(item);
    });
    while (list.children.length > listed.length) list.lastElementChild.remove();
    if (!listed.length) list.replaceChildren(h("li", {class: "none"}, "No messages."));
    if (atEnd) list.scrollTop = list.scrollHeight;
    /* Errors stand at the top of the page too, in plain words and each once, until the run is left. */
    const errors = lines.filter((line, n) => line.level === "error" && !lines.slice(n + 1).some((later) => later.text === line.text)).slice(-3);
    const holder = byId("run-errors"), said = errors.map((line) => ({what: line.text, fix: line.fix, level: "error"}));
    if (atelier.differs(holder, errors)) holder.replaceChildren(...(errors.length ? [atelier.problems(said)] : []));
  };

  let saving = "", newest = "";  // the run whose state is being saved; its newest file
  atelier.parts.files = (files) => {
    if (!begun()) return;
    const file = files.length && run ? files[0].label : "";
    if (saving && run && saving === run.run && file !== newest) { atelier.hear(`Saved ${file}`); saving = ""; }
    newest = file;
    byId("run-files").replaceChildren(...(files.length ? files.map((file) =>
      h("li", {}, file.url ? h("a", {href: file.url, download: file.name, title: file.name}, file.label) : h("span", {class: "grow"}, `${file.label} (a folder)`), ...["final", "kept"].filter((mark) => file[mark]).map((mark) => h("span", {class: "chip"}, mark)), h("span", {class: "figures"}, atelier.bytes(file.bytes))))
      : [h("li", {class: "none"}, "No files saved yet.")]));
  };

  /** The best checkpoint by what was measured, and how sure that is. */
  atelier.parts.best = (best) => {
    if (!begun()) return;
    const line = byId("run-best");
    line.replaceChildren(...!best ? [] : [h("b", {title: best.name}, `step ${best.step} · ${atelier.loss(best.loss)} · lowest`), " ", h("span", {class: "hint"}, `${best.what}; ${best.sure}`)]);
  };
})();
