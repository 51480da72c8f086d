"use strict";
/* The Tools tab, and the download that Train offers next to the base model. */
(() => {
  const atelier = window.atelier, {h, text, byId} = atelier;
  let works = [];

  atelier.getModel = (hubId) => atelier.command("tool", {tool: "download", about: hubId, ask: atelier.ask()});
  /** The latest download of a hub id: shown in place of the button while it runs. */
  atelier.downloadOf = (hubId) => works.find((work) => work.tool === "download" && work.about === hubId);

  const going = atelier.going = (work) => ["waiting", "running", "paused"].includes(work.state);
  const press = (words, command, data, off) => h("button", {type: "button", class: "btn small", disabled: off || null, onclick: (event) => { atelier.once(event.target); atelier.command(command, {...data, ask: atelier.ask()}); }}, words);
  /** An image and its control image. */
  const pair = (each) => h("li", {class: "pair"}, h("strong", {}, each.name),
    h("div", {}, h("img", {src: each.image, alt: "", loading: "lazy"}), h("img", {src: each.hint, alt: `Control image of ${each.name}`, loading: "lazy"})));
  const previewed = (each) => each.hint ? pair(each) : h("li", {}, h("img", {src: each.image, alt: "", loading: "lazy", width: 96, height: 96}),
    h("div", {}, h("strong", {}, each.name), each.caption ? h("p", {}, each.caption) : null,
      each.tags.length ? h("div", {class: "chips"}, each.tags.map(([name, score]) => h("span", {class: "chip"}, name, score === null ? null : h("small", {class: "figures"}, ` ${score.toFixed(2)}`)))) : null,
      each.before ? h("p", {class: "hint"}, `Before: ${each.before}`) : null));
  const line = (work) => h("div", {class: `tool-task ${work.state}`},
    h("div", {class: "tool-task-head"}, h("strong", {}, work.about),
      h("span", {class: "hint figures"}, {waiting: work.text, running: work.text, paused: "paused", done: "done", failed: "failed", cancelled: work.ends_paused ? "paused" : "cancelled"}[work.state]),
      h("span", {class: "grow"}),
      going(work) && work.state !== "waiting" && !work.ends_paused && !work.stopping ? press(work.state === "paused" ? "Resume" : "Pause", "tool_pause", {work: work.id, command: work.state === "paused" ? "resume" : "pause"}) : null,
      work.on_cpu ? press("Start now on the CPU", "tool_on_cpu", {work: work.id}) : null,
      going(work) ? press(work.ends_paused ? "Pause" : "Cancel", "tool_cancel", {work: work.id}, work.stopping) : null,
      work.tool === "download" && work.state === "cancelled" ? h("button", {type: "button", class: "btn small", onclick: () => atelier.getModel(work.about)}, "Resume") : null,
      work.tool === "download" && work.state === "failed" ? h("button", {type: "button", class: "btn small", onclick: () => atelier.getModel(work.about)}, "Try again") : null,
      work.tool === "download" && work.state !== "done" ? h("button", {type: "button", class: "btn small", onclick: () => atelier.command("tool_discard", {about: work.about, ask: atelier.ask()})}, "Discard") : null,
      !going(work) && work.tool !== "download" ? press("Close", "tool_close", {work: work.id}) : null),
    going(work) ? h("progress", {class: work.state === "waiting" ? "off" : null, max: 1, value: work.share === null ? null : work.share, "aria-label": work.text}) : null,
    work.problems.length ? atelier.problems(work.problems) : null,
    work.previews.length ? h("ul", {class: "previewed", "aria-label": `Preview: ${work.about}`}, work.previews.map(previewed)) : null,
    work.lines.length ? h("ul", {class: "tool-lines", tabindex: work.lines.length > 3 ? 0 : null, "aria-label": `Results: ${work.about}`}, work.lines.map((words) => h("li", {}, words))) : null,
    work.pairs && work.state === "done" ? h("p", {class: "result-file"}, press("Train with these pairs", "train_pairs", {work: work.id})) : null,
    atelier.results(work));
  atelier.workLine = line;
  /** Only numbers change while a tool runs: its buttons stay, and with them the keyboard's place. */
  const still = (work) => going(work) ? {...work, text: "", share: work.share === null} : work;
  const move = (node, work) => {
    if (!["waiting", "running"].includes(work.state)) return;
    text(node.querySelector(".figures"), work.text);
    const bar = node.querySelector("progress");
    bar.setAttribute("aria-label", work.text);
    if (work.share !== null) bar.value = work.share;
  };

  /* What a person has started comes into view, which may lie below the window; not if it took so long that they look elsewhere. */
  let started = {card: "", act: "", when: 0};
  atelier.on("click", "[data-act=go], [data-act=preview]", (button) => {
    const form = button.closest("[id^=tools-]");
    if (form) started = {card: form.id.slice("tools-".length), act: button.dataset.act, when: performance.now()};
  });
  atelier.on("click", "[data-act=report-card]", () => { started = {card: "models", act: "", when: performance.now()}; });
  const ABOVE = 60;  // pixels that stay above the pressed button
  const bringIntoView = (holder) => {
    if (holder.dataset.tasks !== started.card || performance.now() - started.when >= 5000 || !holder.firstElementChild) return;
    const {top, bottom} = holder.firstElementChild.getBoundingClientRect(), pressed = document.querySelector(`#tools-${started.card} [data-act="${started.act}"]`);
    scrollBy(0, Math.max(0, Math.min(bottom + 8 - innerHeight, (pressed ? pressed.getBoundingClientRect().top : top) - ABOVE)));  // the button stays in view
  };

  /* What had ended before this visit is folded away; an error stays until it is closed. */
  let earlier = null;
  const folded = (work) => h("details", {class: "tool-earlier"}, h("summary", {}, `Earlier result: ${work.about}`), line(work));
  atelier.parts.works = (list) => {
    earlier ||= new Set(list.filter((work) => ["done", "cancelled"].includes(work.state) && work.tool !== "download").map((work) => work.id));
    const finished = list.some((work) => work.tool === "download" && work.state === "done" && works.some((old) => old.id === work.id && old.state !== "done"));
    works = list;
    for (const holder of document.querySelectorAll("[data-tasks]")) {
      const own = works.filter((work) => work.card === holder.dataset.tasks && !atelier.inCatalog(work.about));
      /* Of results only the latest is shown; what runs, and downloads that can be resumed, stay. */
      const latest = own.find((work) => !going(work));
      const mine = own.filter((work) => going(work) || work === latest || work.tool === "download").slice(0, 3);
      if (!atelier.differs(holder, mine.map(still))) { mine.forEach((work, n) => move(holder.children[n], work)); continue; }
      holder.replaceChildren(...mine.map((work) => earlier.has(work.id) ? folded(work) : line(work)));
      bringIntoView(holder);
    }
    if (finished) atelier.refill();  // the list of base models has grown
    atelier.paintCatalog();
    atelier.repaintModel && atelier.repaintModel();
  };
  atelier.parts.tool_files = (names) => {
    const list = byId("tool-files");
    if (list) list.replaceChildren(...names.map((name) => h("option", {value: name})));
  };

  /* One card at a time: that of the tool or place that was chosen last, and what runs. */
  const LAST = "atelier-tool", style = document.head.appendChild(h("style", {}));
  const only = (at, tool = "") => {
    const place = at === "tools" ? "#tools-holder" : `#${at}`, runs = ".tool-tasks-holder:has(.tool-task:is(.waiting, .running, .paused))";
    text(style, `.column:has(> #tools-holder) > .block:not(.tab-heading, #tool-index-holder, ${place}, #${at}-tasks, ${runs}) { display: none !important; }
      #tool-index [data-at="${at}"]${tool ? `[data-tool="${tool}"]` : ":not([data-tool])"} { font-weight: 600; }`);
  };
  const choose = (at, tool = "") => { atelier.remember(LAST, `${at} ${tool}`); only(at, tool); };
  only(...(atelier.recall(LAST) || "tools-loras").split(" "));
  document.addEventListener("change", ({target}) => {
    const card = target.matches("select[data-arg=action]") && target.closest("[id^=tools-]");
    if (card && atelier.openTab() === "Tools") choose(card.id, target.value);
  });
  /* The index: a click chooses the tool in its card and brings that into view; Enter in the search opens the first that matches. */
  const visit = async (button) => {
    const {tool, at, tab} = button.dataset;
    if (tab !== atelier.openTab()) atelier.goTo(tab);
    if (tab === "Tools") choose(at, tool);
    const shown = () => { const place = byId(at); return place && place.offsetParent && place.querySelector("input, select, button"); };
    const first = await atelier.whenFound(shown, 5000), place = byId(at);
    if (!first) return;
    const choice = place.querySelector("select[data-arg=action]");
    if (tool && choice && choice.value !== tool) { choice.value = tool; choice.dispatchEvent(new Event("change", {bubbles: true})); }
    place.scrollIntoView({block: "start"});
    (choice || first).focus({preventScroll: true});
  };
  /** Lead to a card of Tools. */
  atelier.openTools = (at) => visit({dataset: {at, tab: "Tools"}});
  atelier.does.make_pairs = () => atelier.openTools("tools-hints");
  const LEADS = {get_model: ["tools"], convert_lora: ["tools-loras", "convert_lora"], "report-card": ["tools-models", "card"]};  // act -> card, tool
  atelier.on("click", "[data-act]", ({dataset}) => { if (LEADS[dataset.act]) choose(...LEADS[dataset.act]); });
  const search = (text) => {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    for (const line of document.querySelectorAll("#tool-index li")) atelier.show(line, words.every((word) => line.dataset.found.includes(word)));
    for (const group of document.querySelectorAll(".tool-groups > .tool-group")) atelier.show(group, group.querySelector("li:not([hidden])"));
    atelier.show(byId("tool-none"), !document.querySelector("#tool-index li:not([hidden])"));
  };
  document.addEventListener("input", ({target}) => { if (target.id === "tool-search") search(target.value); });
  document.addEventListener("keydown", (event) => {
    if (event.target.id !== "tool-search" || event.key !== "Enter" || !event.target.value.trim()) return;
    const shown = [...document.querySelectorAll("#tool-index li:not([hidden]) button")], words = event.target.value.trim().toLowerCase();
    const titled = (is) => shown.find((button) => is(button.textContent.trim().toLowerCase()));
    if (shown.length) visit(titled((title) => title === words) || titled((title) => title.includes(words)) || shown[0]);  // "Hashes" before a tool that shows hashes too
  });
  atelier.on("click", "#tool-index [data-at]", visit);

  /* Keys go to the server once and are forgotten here. */
  atelier.parts.keys = (states) => {
    for (const [name, state] of Object.entries(states)) {
      text(document.querySelector(`[data-key-state="${name}"]`), state.words);
      atelier.show(document.querySelector(`[data-forget="${name}"]`), state.stored);
    }
  };
  document.addEventListener("submit", (event) => {
    const form = event.target.closest("form[data-key]");
    if (!form) return;
    event.preventDefault();
    const field = form.querySelector("input"), value = field.value.trim();
    field.value = "";
    if (value) atelier.command("key", {key: form.dataset.key, value, ask: atelier.ask()});
  });
  atelier.on("click", "[data-forget]", ({dataset}) => atelier.command("key", {key: dataset.forget, value: "", ask: atelier.ask()}));
})();
