"use strict";
/* Blind choices: two images without names, a key for each answer, and what the choices say. Those between a run's checkpoints are in
   assets/verdict.js, those between the values of a grid here. */
(() => {
  const atelier = window.atelier, {h, text, show, attr} = atelier;
  const OUTCOMES = {ArrowLeft: "left", ArrowRight: "right", ArrowDown: "equal", s: "skip", Backspace: "undo"};
  const BUTTONS = [["Left", "left"], ["Equal", "equal"], ["Right", "right"], ["Skip", "skip"], ["Undo", "undo"]];
  const AGAIN = 2000;  // milliseconds after which images that were not made yet are asked for again
  const KEYS = "Keys: left, right, down equal, S skip, Backspace undo, Esc end.";
  const percent = (share) => `${Math.round(100 * share)}%`;
  const button = (label, work, kind = "", more = {}) => h("button", {type: "button", class: `btn ${kind}`, onclick: work, ...more}, label);

  /** The answer of a key, undefined for other keys. */
  const outcomeOf = ({key}) => OUTCOMES[key.length === 1 ? key.toLowerCase() : key];
  /** The row of buttons that answer, below `above`. */
  const answers = (answer, end, ...above) => h("div", {class: "verdict-answers", role: "group", "aria-label": "Which image is better?"}, h("div", {role: "status"}, ...above),
    ...BUTTONS.map(([label, outcome]) => button(label, () => answer(outcome), ["left", "right"].includes(outcome) ? "primary" : "", {"data-outcome": outcome, "data-again": ""})),
    h("span", {class: "grow"}), button("End", end));
  const isReady = (images) => images.every((image) => !image.classList.contains("waits"));
  const isLost = (images) => images.some((image) => image.classList.contains("lost"));
  /** Whether an answer can be given: none while the images are on their way, no choice with one that failed to load, no undo before the
      first choice. */
  const can = (outcome, images, number) => isReady(images) && (outcome === "undo" ? number > 1 : outcome === "skip" || !isLost(images));
  /** Enable the answers that can be given. waits: none can, the last one is on its way */
  const enable = (row, images, waits, number) => { for (const node of row.querySelectorAll("[data-outcome]")) node.disabled = waits || !can(node.dataset.outcome, images, number); };
  /** How far the choices are, in words. */
  const progress = (result, images) => {
    if (isLost(images)) return "An image could not be loaded: skip these two";
    const left = result ? result.least - result.choices : 10;
    return left > 0 ? `${left} more choice${left === 1 ? "" : "s"} to a result` : `${result.choices} choices${result.settled ? ", the first place is settled: End shows the result" : ": End shows the result, more choices make it surer"}`;
  };
  /** What the choices say: for each thing how often it is chosen, with its interval, and how likely it is first. more: whether there are
      further choices; thing: head of the column of names; on: what they were made on, in words */
  const findings = (result, more, thing, on = "") => {
    if (!result.rows.length) return [h("p", {class: "hint"}, `${result.choices} of ${result.least} blind choices until a result.`)];
    const [best] = result.rows, certain = result.settled ? "Further choices will hardly change the first place." : more ? "More choices make it surer." : "";
    return [h("p", {}, `After ${result.choices} blind choices${on} `, h("b", {}, result.settled ? `you prefer ${best.label}` : `${best.label} leads`), `: first with ${percent(best.first)} probability. ${certain}`),
      h("table", {}, h("thead", {}, h("tr", {}, h("th", {scope: "col"}, thing), h("th", {scope: "col"}, "Chosen over an average one"), h("th", {scope: "col", class: "num"}, "First"))),
        h("tbody", {}, ...result.rows.map((one) => h("tr", {}, h("th", {scope: "row"}, one.label),
          h("td", {}, h("span", {class: "verdict-bar", "aria-hidden": "true"}, h("i", {style: `left:${100 * one.low}%;width:${100 * (one.high - one.low)}%`}), h("b", {style: `left:${100 * one.share}%`})), h("span", {class: "figures"}, `${percent(one.share)} (${percent(one.low)} to ${percent(one.high)})`)),
          h("td", {class: "num"}, percent(one.first))))))];
  };
  /** Show an image, nothing until it is loaded: the one before would be taken for it. then: what is done after that */
  const put = (image, src, then) => {
    if (image.getAttribute("src") === src) return;
    const settled = (lost) => () => { image.classList.remove("waits"); image.classList.toggle("lost", lost); then(); };
    image.classList.add("waits");
    image.onload = settled(false);
    image.onerror = settled(true);
    image.src = src;
  };
  atelier.blind = {KEYS, outcomeOf, answers, can, enable, progress, findings, put, isReady};

  /* ---- a grid's ---- */

  const open = (opener) => {
    const grid = opener.dataset.choose;
    let data = null, axis = "", waits = false, over = false, asked = 0;
    const pane = (label, outcome) => { const image = h("img", {alt: `${label} image`, decoding: "async", onclick: () => answer(outcome)}); return {image, node: h("figure", {}, h("figcaption", {}, label), h("div", {class: "verdict-frame"}, image))}; };
    const panes = [pane("Left", "left"), pane("Right", "right")];
    const images = panes.map(({image}) => image);
    const stage = h("div", {class: "verdict-stage"}, ...panes.map(({node}) => node)), problems = h("div", {}), found = h("div", {class: "verdict-choices"}), title = h("h3", {});
    const axes = h("select", {class: "text", "aria-label": "What to choose between", onchange: ({target}) => { axis = target.value; over = false; box.focus(); ask(); }});
    const question = h("div", {}), count = h("div", {}), none = h("p", {class: "hint", role: "status"});
    const end = (on) => { over = on; draw(); box.focus(); };
    const row = answers((outcome) => answer(outcome), () => end(true), question, count), keys = h("p", {class: "hint"}, KEYS);
    const go = button("Continue", () => end(false)), close = h("div", {class: "strip"}, go, h("span", {class: "grow"}), button("Close", () => box.close()));
    const box = h("dialog", {class: "grid-light blind", "aria-label": "Blind choice", tabindex: -1}, h("div", {class: "card-head"}, title, h("span", {class: "grow"}), axes), problems, none, stage, row, found, keys, close);
    const answer = (outcome) => {
      const pair = data && !over && data.pair;
      if (!pair || waits || !can(outcome, images, pair.number)) return;
      box.focus();  // a disabled button takes no key
      ask({left: pair.left, right: pair.right, prompt: pair.prompt, outcome});
    };
    const ask = async (choice = null) => {
      const turn = asked += 1;
      waits = true;
      enable(row, images, true);
      const answered = await atelier.question("choose", {grid, axis, choice});
      if (turn !== asked) return;  // another axis was chosen meanwhile
      waits = false;
      problems.replaceChildren(...(answered.problems ? [atelier.problems(answered.problems)] : []));
      if (!answered.problems) { data = answered; ({axis} = data); }
      draw();
      const more = answered.problems ? answered.lost && !data : !data.pair && data.missing;  // another answer can come
      if (more) setTimeout(() => { if (box.isConnected && turn === asked) ask(); }, AGAIN);
    };
    const draw = () => {
      const pair = data && data.pair, chooses = Boolean(pair) && !over;
      for (const node of [stage, row, keys]) show(node, chooses);
      show(none, Boolean(data) && !pair);
      if (data) text(none, data.missing ? `${data.missing} image${data.missing === 1 ? " is" : "s are"} not made yet. A blind choice begins with three pairs.` : "A blind choice needs three pairs of different images. Another axis with prompts or seeds gives more of them.");
      show(found, Boolean(data && data.result) && !chooses);
      show(go, Boolean(pair) && over);
      show(close, !chooses);
      show(axes, Boolean(data) && data.axes.length > 1);
      if (!data) return;
      text(title, data.title);
      if (atelier.differs(axes, data.axes)) axes.replaceChildren(...data.axes.map(([value, words]) => h("option", {value}, words)));
      axes.value = axis;
      if (data.result) found.replaceChildren(...findings(data.result, Boolean(pair), data.axes.find(([letter]) => letter === axis)[1]));
      if (!pair) return;
      text(question, `Which is better for "${pair.about}"?`);
      attr(question, "title", question.textContent);
      images.forEach((image, n) => put(image, pair.images[n], draw));
      text(count, progress(data.result, images));
      enable(row, images, waits, pair.number);
      if (isReady(images)) row.dataset.number = pair.number;
    };
    for (const image of images) image.addEventListener("load", () => stage.style.setProperty("--shape", (image.naturalWidth / image.naturalHeight).toFixed(4)));
    box.addEventListener("keydown", (event) => {
      const outcome = outcomeOf(event);
      if (!outcome || event.ctrlKey || event.metaKey || event.altKey || event.target === axes || !data || over) return;
      event.preventDefault();
      answer(outcome);
    });
    draw();
    atelier.modal(box);
    box.focus();
    ask();
  };
  atelier.on("click", "[data-choose]", open);
})();
