"use strict";
/* The comparison of a run's checkpoints on Monitor: base model, one checkpoint large, a filmstrip of all, and blind choices. Images are
   replaced only where they differ, and the ones next to the shown one are loaded before they are asked for. */
(() => {
  const atelier = window.atelier, {h, text, show, attr, byId} = atelier;
  const KEYS = "Keys: left and right step, up and down prompt, hold space base model, K keep, B blind choice.";
  let data = null, column = 0, row = 0, strength = 1, base = false, blind = false, answered = 0, inWords = null, parts = null;
  const WITHOUT = "without the trigger word";  // what a proposed prompt shows
  let ticks = new Map(), power = "";  // of the average, as they were set

  const button = (label, work, kind = "", more = {}) => h("button", {type: "button", class: `btn ${kind}`, onclick: work, ...more}, label);
  /** A control that changes the run: off, with the reason, on the run of another person. */
  const changing = (control, why = data.refused) => { if (why) { control.disabled = true; control.title = why; } return control; };
  const send = (name, more) => atelier.command(name, {run: data.run, ask: atelier.ask(), ...more});
  const minutes = (count) => `${count} minute${count === 1 ? "" : "s"}`;
  const isMade = () => Boolean(data.images[strength]);
  /** The images of a prompt at the strength that is shown; the base model has the same one at each. */
  const lineOf = (at) => { const usual = data.images[1][at] || []; return isMade() ? [usual[0], ...(data.images[strength][at] || []).slice(1)] : usual.slice(0, 1); };
  const images = (count) => `${count} image${count === 1 ? "" : "s"}`;

  /* ---- what never changes is made once ---- */

  const figure = (kind) => {
    const label = h("figcaption", {}), image = h("img", {alt: "", decoding: "async"}), none = h("div", {class: "verdict-none"});
    return {node: h("figure", {class: kind}, label, h("div", {class: "verdict-frame"}, image, none)), label, image, none};
  };
  const build = () => {
    const holder = byId("verdict");
    if (!holder || holder.firstChild) return Boolean(holder);
    const p = parts = {
      make: h("div", {class: "verdict-make"}), problems: h("div", {}), left: figure("verdict-base"), right: figure("verdict-one"),
      prompt: h("select", {"aria-label": "Prompt", onchange: ({target}) => go(column, Number(target.value))}), shows: h("span", {class: "hint"}),
      strip: h("div", {class: "verdict-strip", role: "group", "aria-label": "Checkpoints"}),
      slider: h("input", {type: "range", min: 1, step: 1, "aria-label": "Checkpoint", oninput: ({target}) => go(Number(target.value), row)}),
      force: h("input", {type: "range", min: 0, step: 1, "aria-label": "Strength", oninput: ({target}) => { strength = data.strengths[Number(target.value)]; draw(); text(parts.status, `strength ${strength}`); }}),
      forced: h("output", {class: "figures"}), limit: h("input", {type: "number", class: "text", min: 1, max: 1440, step: 1, "aria-label": "Minutes at most"}),
      answer: h("p", {class: "verdict-answer"}), sentence: h("p", {class: "verdict-sentence"}), keep: h("div", {class: "verdict-keep", role: "group", "aria-label": "Keep"}), keys: h("p", {class: "hint verdict-keys"}, KEYS),
      choices: h("div", {class: "verdict-choices"}), average: h("details", {class: "verdict-average"}), status: h("p", {class: "verdict-status", role: "status"}),
      question: h("div", {}), count: h("div", {}), assess: h("section", {class: "verdict-assess", "aria-label": "Assessment"}),
    };
    p.stage = h("div", {class: "verdict-stage", tabindex: 0, role: "group", "aria-label": "Images of the base model and of a checkpoint",
      "aria-keyshortcuts": "ArrowLeft ArrowRight ArrowUp ArrowDown Space K B"}, p.left.node, p.right.node);
    p.before = button("Previous", () => go(column, row - 1), "small", {"aria-label": "Previous prompt"});
    p.after = button("Next", () => go(column, row + 1), "small", {"aria-label": "Next prompt"});
    p.blind = button("Blind choice", () => setBlind(true), "small", {title: "Choose between two images without names (B), once images of two checkpoints and a few prompts are made"});
    p.all = button("Table of all", () => { send("verdict_all"); atelier.toGrid(); }, "small");
    p.limit.addEventListener("change", () => send("verdict_minutes", {minutes: Number(p.limit.value)}));
    p.answers = atelier.blind.answers(answer, () => setBlind(false), p.question, p.count);
    p.strength = h("label", {class: "verdict-strength"}, h("span", {}, "Strength"), p.force, p.forced);
    p.further = h("div", {class: "verdict-further"});
    p.film = h("div", {class: "verdict-film"}, p.strip, h("div", {class: "verdict-sliders"}, h("label", {class: "verdict-steps"}, h("span", {}, "Step"), p.slider), p.strength), p.further);
    new ResizeObserver(() => data && data.columns && drawStrip()).observe(p.strip);  // where it was out of sight, nothing could be scrolled to
    p.row = h("div", {class: "verdict-prompt"}, p.before, p.prompt, p.after, p.shows);
    holder.replaceChildren(h("div", {class: "card-head"}, h("h3", {}, "Compare checkpoints"), h("span", {class: "grow"}), p.blind, p.all), p.answer, p.problems, p.make,
      h("div", {class: "verdict-body"}, h("div", {class: "verdict-main"}, p.stage, p.answers, p.film), h("div", {class: "verdict-side"}, p.row, p.sentence, p.keep, p.choices, p.average, p.keys)), p.assess, p.status);
    for (const [pane, outcome] of [[p.left, "left"], [p.right, "right"]]) pane.image.addEventListener("click", () => { if (blind) answer(outcome); });
    for (const pane of [p.left, p.right]) pane.image.addEventListener("load", ({target}) => p.stage.style.setProperty("--shape", (target.naturalWidth / target.naturalHeight).toFixed(4)));
    holder.addEventListener("keydown", (event) => press(event));
    holder.addEventListener("keyup", (event) => { if (event.key === " ") showBase(false); });
    p.right.image.addEventListener("pointerdown", () => showBase(true));
    for (const kind of ["pointerup", "pointerleave", "pointercancel"]) p.right.image.addEventListener(kind, () => showBase(false));
    return true;
  };

  /* ---- moving ---- */

  const go = (toColumn, toRow) => {
    column = Math.min(Math.max(toColumn, 1), data.columns.length - 1);
    row = Math.min(Math.max(toRow, 0), data.prompts.length - 1);
    draw();
    tell();
  };
  const tell = () => text(parts.status, [data.columns[base ? 0 : column].label, data.prompts[row].text, parts.right.none.hidden ? "" : parts.right.none.textContent].filter(Boolean).join(", "));
  const showBase = (on) => { if (base !== on && !blind && data && data.columns) { base = on; drawStage(); tell(); } };
  const setBlind = (on) => {
    const [first] = data.preferred ? data.preferred.rows : [];
    if (blind && !on && first) column = Math.max(1, data.columns.findIndex((one) => one.file === first.file));  // what leads is what K keeps
    blind = on && Boolean(data.blind);
    draw();
    parts.stage.focus({preventScroll: true});
  };
  const answer = (outcome) => {
    const pair = data.blind;
    if (!pair || answered === `${pair.number}` || !atelier.blind.can(outcome, [parts.left.image, parts.right.image], pair.number)) return;  // the next two images are on their way
    answered = `${pair.number}`;
    setTimeout(() => { if (data && data.blind && data.blind.number === pair.number) { answered = ""; draw(); } }, 3000);  // it was refused or lost
    parts.stage.focus({preventScroll: true});  // a disabled button takes no key
    drawAnswers();
    send("verdict_choose", {left: pair.left, right: pair.right, prompt: pair.prompt, outcome});
  };
  /** Lead to the comparison: to the button that makes what is missing, else to the images. */
  atelier.toVerdict = () => {
    byId("verdict").scrollIntoView({block: "start"});
    if (parts) (parts.make.querySelector(".btn.primary") || parts.stage).focus({preventScroll: true});
  };
  const press = (event, target = event.target) => {
    const {key} = event, on = (kinds) => target.matches(kinds);
    if (!data || !data.columns || event.ctrlKey || event.metaKey || event.altKey || on("select, textarea, input:not([type=range])")) return;
    if (target === parts.force && /^Arrow|^Page|^Home$|^End$/.test(key)) return;
    const letter = key.length === 1 ? key.toLowerCase() : key;
    if (letter === " " && on("button:not(.verdict-step), summary")) return;
    if (blind) {
      if (key === "Escape") setBlind(false); else if (atelier.blind.outcomeOf(event)) answer(atelier.blind.outcomeOf(event)); else return;
    } else {
      const at = on(".verdict-step") ? [...parts.strip.children].indexOf(target) + 1 : column;  // a step that has the focus need not be the one shown
      const moves = {ArrowLeft: [at - 1, row], ArrowRight: [at + 1, row], ArrowUp: [column, row - 1], ArrowDown: [column, row + 1]};
      if (moves[key]) {
        go(...moves[key]);
        if (on(".verdict-step")) parts.strip.children[column - 1].focus({preventScroll: true});
      }
      else if (letter === " ") showBase(true);
      else if (letter === "k") keep(true);
      else if (letter === "b" && data.blind) setBlind(true);
      else return;
    }
    event.preventDefault();
  };
  /** Right after a click on the tab the keys work too, and where nothing has the focus those that do not scroll, while the stage is in sight. */
  let pointed = null;
  addEventListener("pointerdown", ({target}) => { pointed = target.closest && target.closest("[role=tab]"); }, {capture: true, passive: true});
  const isSeen = () => { const {top, bottom} = parts.stage.getBoundingClientRect(); return parts.stage.checkVisibility() && bottom > 0 && top < innerHeight; };
  addEventListener("keydown", (event) => {
    const at = document.activeElement, taken = at === document.body ? ["ArrowUp", "ArrowDown", " "] : [];
    if (event.key === "Tab") pointed = null;
    const tabbed = at !== document.body && at !== pointed;  // by keyboard: down alone leads there
    if (!parts || !at.matches("body, [role=tab]") || taken.includes(event.key) || (tabbed ? event.key !== "ArrowDown" || !parts.stage.checkVisibility() : !isSeen()) || document.querySelector("dialog[open]")) return;
    press(event, parts.stage);
    if (!event.defaultPrevented) return;
    event.stopPropagation();
    parts.stage.focus();
  }, true);
  const keep = (on) => { const one = data.columns[column]; if (!data.refused && !one.gone && on !== (one.kept !== null)) send("verdict_keep", {file: one.file, keep: on}); };

  /* ---- drawing ---- */

  atelier.parts.verdict = (news) => {
    const holder = byId("verdict");
    if (!holder) return;
    show(holder, Boolean(news));
    if (!news) { data = null; return; }
    if (!build()) return;
    if (!data || data.run !== news.run) {
      for (const {image} of [parts.left, parts.right]) attr(image, "src", null);  // no image of another run under this one's labels
      blind = base = false; column = row = 0; strength = 1; answered = ""; ticks = new Map(); power = "";
    }
    const before = data && data.columns && data.columns[column], there = before && news.columns ? news.columns.findIndex((one) => one.file === before.file) : -1;
    if (column && there > 0) column = there;
    data = news;
    for (const node of [parts.answer, parts.make, parts.stage.closest(".verdict-body"), parts.assess, parts.blind, parts.all]) show(node, Boolean(data.columns));
    parts.problems.replaceChildren(...(data.problems ? [atelier.problems(data.problems)] : []));
    if (!data.columns) return;
    if (!column) column = first();
    draw();
  };
  /** The column that is shown at first: the one to use, else the last. */
  const first = () => { const at = data.columns.findIndex((one) => one.use); return at > 0 ? at : data.columns.length - 1; };
  const draw = () => {
    column = Math.min(column, data.columns.length - 1);
    row = Math.min(row, data.prompts.length - 1);
    if (!data.blind) blind = false;
    byId("verdict").classList.toggle("blind", blind);
    for (const node of [parts.row, parts.film]) show(node, !blind);
    show(parts.answers, blind);
    text(parts.keys, blind ? atelier.blind.KEYS : KEYS);
    parts.blind.disabled = !data.blind;
    parts.all.disabled = !data.making.state || Boolean(data.making.refused);
    attr(parts.all, "title", data.making.refused || (data.making.state ? "All images of the comparison, in Generate" : "The images are not made yet"));
    byId("verdict").dataset.state = data.making.state;
    attr(parts.blind, "aria-pressed", String(blind));
    drawMake();
    drawStage();
    drawStrip();
    drawAnswers();
    drawKeep();
    drawAverage();
    drawChoices();
    drawAssess();
    text(parts.answer, data.answer);
    text(parts.sentence, data.sentence);
    for (const node of [parts.answer, parts.sentence]) node.classList.toggle("off", blind);  // they name steps
  };
  const put = (pane, image, label, words) => {
    if (pane.label.textContent !== label) text(pane.label, label);
    const there = image && image.whole;
    attr(pane.image, "src", there || null);
    attr(pane.image, "alt", there ? words : "");
    show(pane.image, Boolean(there));
    show(pane.none, !there);
    text(pane.none, image && image.failed ? image.failed : data.making.state === "running" ? "Not made yet" : "No image");
  };
  const load = (image) => { if (image && image.whole) new Image().src = image.whole; };
  const drawStage = () => {
    const {left, right} = parts;
    if (blind) {
      const [one, other] = data.blind.images;
      for (const [pane, src] of [[left, one], [right, other]]) atelier.blind.put(pane.image, src, drawAnswers);
      put(left, {whole: one}, "Left", "Left image");
      put(right, {whole: other}, "Right", "Right image");
      return;
    }
    const line = lineOf(row), one = data.columns[base ? 0 : column], words = (label) => `${data.prompts[row].text}, ${label}`;
    const marks = [one.loss !== null && !base && strength === 1 ? `loss ${atelier.loss(one.loss)}` : "", one.mark, one.kept_mark].filter(Boolean);
    put(left, line[0], data.columns[0].label, words(data.columns[0].label));
    put(right, line[base ? 0 : column], [one.label, ...(base ? [] : [...(strength === 1 ? [] : [`strength ${strength}`]), ...marks])].join(" · "), words(one.label));
    for (const near of [line[column - 1], line[column + 1], ...[row - 1, row + 1].map((at) => lineOf(at)[column])]) load(near);
  };
  const marksOf = (one) => [one.mark, one.preferred && "preferred", one.kept !== null && "kept", one.gone && "deleted"].filter(Boolean).map((mark) => h("small", {}, mark));
  const drawStrip = () => {
    const {strip, slider, prompt, force} = parts, line = lineOf(row), strengths = data.strengths;
    force.max = strengths.length - 1;
    force.value = strengths.indexOf(strength);
    attr(force, "aria-valuetext", String(strength));
    const open = ["running", "waiting"].includes(data.making.state);
    text(parts.forced, `${strength}${isMade() && line[column] ? "" : !isMade() ? ", not made" : open ? ", in work" : ", this image not made"}`);
    show(parts.strength, strengths.length > 1);
    show(parts.further, strengths.length > 1);
    if (atelier.differs(prompt, data.prompts)) prompt.replaceChildren(...data.prompts.map((one, n) => h("option", {value: n}, `${n + 1}. ${one.text}`)));
    prompt.value = String(row);
    text(parts.shows, data.prompts[row].shows);
    parts.before.disabled = row === 0;
    parts.after.disabled = row === data.prompts.length - 1;
    slider.max = data.columns.length - 1;
    slider.value = column;
    slider.disabled = data.columns.length < 3;
    attr(slider, "aria-valuetext", data.columns[column].label);
    const held = strip.contains(document.activeElement);
    if (atelier.differs(strip, data.columns)) strip.replaceChildren(...data.columns.slice(1).map((one, n) =>
      h("button", {type: "button", class: "verdict-step", onclick: () => go(n + 1, row)}, h("span", {class: "verdict-thumb"}, h("img", {alt: "", loading: "lazy"})),
        h("b", {}, one.label), ...marksOf(one))));
    [...strip.children].forEach((node, n) => {
      const image = line[n + 1], img = node.querySelector("img");
      attr(img, "src", image && image.small);
      show(img, Boolean(image && image.small));
      attr(node, "aria-current", n + 1 === column ? "true" : null);
      if (n + 1 === column) strip.scrollLeft = Math.max(node.offsetLeft + node.offsetWidth + 8 - strip.clientWidth, Math.min(strip.scrollLeft, node.offsetLeft - 8));
    });
    if (held && !strip.contains(document.activeElement)) strip.children[column - 1].focus({preventScroll: true});
  };
  /** What a job in the queue waits for, which `atelier.tellWaits` keeps current. */
  const waiting = (entry) => h("span", {"data-waits": entry});
  const drawMake = () => {
    const {make, limit} = parts, {state, total, missing, about, left, more, message, entry, late} = data.making, fresh = data.making.new;
    if ([make, parts.further].some((each) => each.querySelector("button:active"))) { delete atelier.have.verdict; return; }  // it must not change under the pointer that presses it
    if (!atelier.differs(make, [data.making, data.columns.length, data.prompts.length, strength, isMade()])) return;
    const begin = (label, kind = "primary", extra = {}) => { const made = button(label, () => { atelier.once(made); send("grid", {...extra, minutes: Number(limit.value)}); parts.stage.focus({preventScroll: true}); }, kind); return changing(made, data.refused || data.making.refused); };
    const leave = (label, more) => { const made = button(label, () => { atelier.once(made); strength = 1; send("verdict_leave_out"); draw(); }, "small", more); return changing(made, data.refused || data.making.refused); };
    const {taken} = data.making, counted = taken ? `: ${images(total)}, ${taken} of them samples of the training` : "";  // the progress counts them too
    const done = total - missing, over = late ? `The ${minutes(data.making.minutes)} are over` : message;
    const atMost = () => h("label", {class: "verdict-limit"}, "at most", limit, "minutes");
    if (document.activeElement !== limit) limit.value = data.making.minutes;
    const progress = () => [h("span", {}, `${done} of ${images(total)}${left ? `, about ${left} left` : ""}`), h("span", {class: "progress"}, h("i", {style: `width:${(100 * done / total).toFixed(1)}%`})), button("Cancel", () => send("cancel", {entry}), "small")];
    const further = () => state === "running" && isMade() && strength !== 1 ? progress() : isMade() || !["stopped", "done", "running", "waiting"].includes(state) ? [] : [begin(`Make strength ${strength}: ${images(data.making.strength_images)}${data.making.strength_about ? `, about ${data.making.strength_about}` : ""}`, "primary", {strength})];
    const kinds = {
      "": () => [h("span", {}, `The base model and ${data.columns.length - 1} checkpoint${data.columns.length === 2 ? "" : "s"} with the same noise, on ${data.prompts.length} prompt${data.prompts.length === 1 ? "" : "s"}${counted}${about ? `, about ${about}` : ""}.`), begin(`Make ${images(missing - taken)}`), atMost()],
      running: progress,
      stopped: () => [h("span", {class: message ? "bad" : ""}, `${over ? `${over}. ` : ""}${done} of ${images(total)} made.`), begin(`Make the rest${about ? `, about ${about}` : ""}`), atMost(),
        data.making.complete ? leave(`Leave out ${data.making.incomplete}`, {title: `Compares the ${images(data.making.complete)} that are complete; nothing is deleted`}) : null].filter(Boolean),
      done: () => [fresh ? begin(`Add ${fresh} checkpoint${fresh === 1 ? "" : "s"}: ${images(data.making.new_images)}${data.making.new_about ? `, about ${data.making.new_about}` : ""}`) : null, more ? begin(`Add ${more} prompts: ${images(data.making.more_images)}${data.making.more_about ? `, about ${data.making.more_about}` : ""}`, "small", {more: true}) : null, fresh || more || !isMade() ? atMost() : null].filter(Boolean),
    };
    kinds.waiting = () => [h("span", {}, `${images(missing)}: `, waiting(entry)), button("Cancel", () => send("cancel", {entry}), "small")];
    make.replaceChildren(...kinds[state]());
    parts.further.replaceChildren(...further());
  };
  const drawAnswers = () => {
    if (!blind) return;
    const images = [parts.left.image, parts.right.image];
    if (atelier.blind.isReady(images)) parts.answers.dataset.number = data.blind.number;
    atelier.blind.enable(parts.answers, images, answered === `${data.blind.number}`, data.blind.number);
    const without = data.prompts.some(({text: words, shows}) => words === data.blind.prompt && shows === WITHOUT) ? `, ${WITHOUT}` : "";
    text(parts.question, `Which is better for "${data.blind.prompt}"${without}${Object.keys(data.images).length > 1 ? ", both at strength 1" : ""}?`);
    attr(parts.question, "title", parts.question.textContent);
    text(parts.count, atelier.blind.progress(data.preferred, images));
  };
  const drawKeep = () => {
    const one = data.columns[column], {keep: holder} = parts;
    show(holder, !blind && !data.refused);
    const {left, away} = data.others, files = (count) => `${count} checkpoint${count === 1 ? "" : "s"}`;
    if (!atelier.differs(holder, [one.file, one.kept, one.copied, one.gone, left, away, data.copy_to])) return;
    const what = one.kept === null ? [button("Keep this one", () => keep(true), "primary", {title: "Marks it in Runs and Generate (K)", disabled: one.gone}), data.copy_to ? h("span", {class: "hint"}, `and copy it to ${data.copy_to}`) : null].filter(Boolean)
      : [h("label", {class: "good"}, "Kept as", h("input", {type: "text", class: "text", id: "verdict-name", value: one.kept, maxlength: 80, spellcheck: false, autocomplete: "off", title: "Its name in Runs, Generate and the file's metadata",
        onchange: ({target}) => send("verdict_keep", {file: one.file, keep: true, title: target.value})})), button("Undo", () => keep(false), "small quiet", {"aria-label": `Undo keeping ${one.label}`})];
    const once = (label, name, title) => { const made = button(label, () => { atelier.once(made); send(name); }, "small", {title}); return made; };
    if (left) what.push(once(`Move the ${files(left)} not kept to the trash`, "verdict_put_away", "They can be put back here"));
    if (away) what.push(once(`Put ${files(away)} back`, "verdict_put_back", "From the trash, to where they were"));
    if (one.kept !== null) what.push(copyRow(one));
    const held = holder.contains(document.activeElement);
    holder.replaceChildren(...what);
    if (held && holder.firstElementChild && !holder.firstElementChild.disabled) holder.firstElementChild.focus({preventScroll: true});
  };
  /** Copying a kept checkpoint to the folder of another program, and how that went. */
  const copyRow = (one) => {
    const folder = h("input", {type: "text", class: "text", id: "verdict-folder", value: data.copy_to, maxlength: 4000, spellcheck: false, autocomplete: "off", placeholder: data.copy_hint});
    const copy = () => send("verdict_copy", {file: one.file, folder: folder.value}), {percent = null, path = "", problems = []} = one.copied || {};
    folder.addEventListener("keydown", (event) => { if (event.key === "Enter") copy(); });
    return h("div", {class: "verdict-copy"}, h("label", {}, "Copy to", folder), button("Copy", copy, "small", {disabled: percent !== null}), percent !== null ? h("span", {class: "hint", role: "status"}, `${percent}% copied`) : null,
      path ? h("span", {class: "hint", role: "status"}, "Copied: ", h("code", {}, path)) : null, problems.length ? atelier.problems(problems) : null);
  };
  const drawAssess = () => {
    const {assess} = parts, one = data.columns[column], found = data.assess;
    show(assess, !blind && Boolean(found));
    if (assess.hidden || !atelier.differs(assess, [column, data.columns, found])) return;
    const {state, entry, done, total, left, missing, measures, about, message, rows} = found, measured = rows[one.file] || [], checkpoints = `${missing} checkpoint${missing === 1 ? "" : "s"}`;
    const begin = button(`Assess ${checkpoints}`, () => { atelier.once(begin); send("verdict_assess"); parts.stage.focus({preventScroll: true}); }, measured.length ? "small" : "");
    changing(begin);
    const cancel = button("Cancel", () => send("cancel", {entry}), "small");
    const doing = state === "waiting" ? [h("span", {class: "hint"}, waiting(entry)), cancel]
      : state === "running" ? [h("span", {class: "hint"}, total ? `${Math.round(100 * done / total)}% measured${left ? `, ${left} left` : ""}` : "Loading the model"), h("span", {class: "progress"}, h("i", {style: `width:${total ? (100 * done / total).toFixed(1) : 0}%`})), cancel]
        : missing ? [message ? h("span", {class: "bad"}, message) : h("span", {class: "hint"}, `Measures ${measures}${about ? `, about ${about}` : ""}.`), begin] : [];
    const pair = (images) => h("div", {class: "verdict-pair"}, ...images.map((image, n) => h("figure", {}, h("a", {href: image.whole, target: "_blank", rel: "noopener"}, h("img", {src: image.small, alt: n ? "Training image" : "Generated image"})), h("figcaption", {}, n ? "training image" : "generated"))));
    const item = (each) => [h("dt", {class: each.warning ? "bad" : "", title: each.meaning}, each.title), h("dd", {}, each.sentence, ...(each.images.length ? [pair(each.images)] : []))];
    const words = h("details", {hidden: !measured.length, open: inWords ?? measured.some((each) => each.warning)}, h("summary", {onclick: () => { inWords = !words.open; }}, `${one.label[0].toUpperCase()}${one.label.slice(1)} in words`), h("dl", {}, ...measured.flatMap(item)));
    const heads = () => [...assess.querySelectorAll("thead .btn")], held = heads().indexOf(document.activeElement), follows = held >= 0 && document.activeElement.hasAttribute("aria-current");
    assess.replaceChildren(h("div", {class: "verdict-make"}, h("h4", {}, "Assessment"), ...doing), measuresTable(rows), words);
    const table = assess.querySelector(".verdict-measures"), shown = table.querySelector("thead [aria-current]");
    if (held >= 0) (follows ? shown : heads()[held]).focus({preventScroll: true});
    if (shown) table.scrollLeft = shown.closest("th").offsetLeft - table.clientWidth / 2;
  };
  /** All that was measured: a row for each measure, a column for each checkpoint, which its head shows. */
  const measuresTable = (rows) => {
    const columns = data.columns.slice(1), titles = new Map(Object.values(rows).flat().filter((each) => each.brief !== "-").map((each) => [each.title, each.meaning]));
    const head = (one, n) => h("th", {scope: "col"}, button(one.label, () => go(n + 1, row), "small quiet", {"aria-current": n + 1 === column ? "true" : null}), ...marksOf(one));
    const cell = (one, n, title) => {
      const each = (rows[one.file] || []).find((other) => other.title === title);
      return h("td", {class: `num${n + 1 === column ? " on" : ""}${each && each.warning ? " bad" : ""}`, title: each && each.sentence}, each ? each.brief : "");
    };
    return h("div", {class: "verdict-measures", hidden: !titles.size, tabindex: 0, role: "group", "aria-label": "Measures of all checkpoints"}, h("table", {}, h("thead", {}, h("tr", {}, h("td", {}), ...columns.map(head))),
      h("tbody", {}, ...[...titles].map(([title, meaning]) => h("tr", {}, h("th", {scope: "row"}, title, h("small", {}, meaning)), ...columns.map((one, n) => cell(one, n, title)))))));
  };
  const drawAverage = () => {
    const {average} = parts, columns = data.columns.slice(1).filter((one) => !one.gone && !one.average);
    show(average, !blind && !data.refused && Boolean(data.average) && columns.length > 1);
    if (average.hidden || !atelier.differs(average, [columns.map((one) => one.file), data.average])) return;
    const tick = ({target}) => ticks.set(target.value, target.checked), usual = new Set(columns.slice(-3).map((one) => one.file));
    const boxes = columns.map((one) => h("label", {class: "check"}, h("input", {type: "checkbox", value: one.file, checked: ticks.get(one.file) ?? usual.has(one.file), onchange: tick}), one.label));
    const how = h("select", {"aria-label": "Weights of the average", onchange: ({target}) => { power = target.value; }}, h("option", {value: ""}, "equal weights"), h("option", {value: "power"}, "power function: later steps count more"));
    how.value = power;
    const go = button(data.average.running ? "Averaging ..." : "Save the average", () => { atelier.once(go); send("verdict_average", {files: boxes.map((box) => box.firstChild).filter((box) => box.checked).map((box) => box.value), power: how.value}); }, "small", {disabled: data.average.running});
    average.replaceChildren(h("summary", {}, "Average checkpoints"), h("p", {class: "hint"}, "The mean of several checkpoints of one run is often steadier than each. It becomes one more checkpoint to compare."),
      h("div", {class: "verdict-boxes"}, ...boxes), h("div", {class: "verdict-boxes"}, how, go), h("p", {class: "hint", hidden: !data.average.saved}, `Saved: ${data.average.saved}. It can be added to the comparison above.`), ...(data.average.problems.length ? [atelier.problems(data.average.problems)] : []));
  };
  const drawChoices = () => {
    const result = data.preferred, {choices} = parts;
    show(choices, !blind && Boolean(result));
    if (result && atelier.differs(choices, [result, Boolean(data.blind)])) choices.replaceChildren(...atelier.blind.findings(result, Boolean(data.blind), "Checkpoint", ` on ${result.prompts} prompt${result.prompts === 1 ? "" : "s"}`));
  };
})();
