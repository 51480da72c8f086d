"use strict";
/* The queue on Monitor and on Runs: what runs, what waits in which order, what ended last. */
(() => {
  const atelier = window.atelier, {h, text, slot} = atelier;
  const STATES = {cancelled: "stopped"};
  const TASKS = {probe: "test of two batches", train: "training", generate: "images", prepare: "preparing", caption: "captions", tool: "tool", class_images: "regularization images"};
  const act = (name, more, run) => (event) => { event.currentTarget.disabled = true; if (run) atelier.stay(run); atelier.command(name, {...more, ask: atelier.ask()}); };
  /** What an entry does not offer keeps its place: a click on Cancel that comes late must not stop what has begun. */
  const button = (offered, words, label, name, more, off, run) => {
    const made = h("button", {type: "button", class: "btn small quiet", "data-entry": more.entry || more.run, "aria-label": label, title: label, disabled: off, onclick: act(name, more, run)}, words);
    slot(made, offered);
    return made;
  };
  const row = (entry, place, waiting) => h("li", {class: `state-${entry.state}`},
    h("span", {class: "chip"}, STATES[entry.state] || entry.state),
    entry.run && entry.task === "train" ? h("a", {href: `#Monitor/${encodeURIComponent(entry.run)}`}, atelier.parted(entry.title)) : h("span", {class: "title"}, atelier.parted(entry.title)),
    h("span", {class: "hint"}), h("span", {class: "grow"}),
    h("span", {class: "slots"}, button(entry.continuable, "Resume training", `Resume training ${entry.title}`, "continue", {run: entry.run}),
      button(place >= 0, "Up", `Move ${entry.title} up`, "move", {entry: entry.id, position: place - 1}, place === 0),
      button(place >= 0, "Down", `Move ${entry.title} down`, "move", {entry: entry.id, position: place + 1}, place === waiting - 1),
      button(place >= 0, "Cancel", `Cancel ${entry.title}`, "cancel", {entry: entry.id}),
      button(entry.state === "running", "Stop", `Stop ${entry.title}`, "cancel", {entry: entry.id}, false, entry.run)));

  atelier.parts.queue = ({paused, entries}) => {
    const waiting = entries.filter((entry) => entry.state === "waiting");
    const said = (entry) => [TASKS[entry.task] || entry.task, entry.doing || entry.message].filter(Boolean).join(": ");
    for (const card of document.querySelectorAll(".queue-card")) {
      /* Runs has a row for each training that has ended. */
      const shown = card.closest("#runs-queue") ? entries.filter((entry) => !entry.run || entry.task !== "train" || ["running", "waiting"].includes(entry.state)) : entries;
      const list = card.querySelector(".queue"), key = JSON.stringify(shown.map((entry) => ({...entry, doing: ""})));
      if (list.dataset.key !== key) list.replaceChildren(...(shown.length ? shown.map((entry) => row(entry, waiting.indexOf(entry), waiting.length)) : [h("li", {class: "none"}, "The queue is empty.")]));
      list.dataset.key = key;
      shown.forEach((entry, n) => text(list.children[n].querySelector(".hint"), said(entry)));
      const words = card.querySelector(".queue-words"), pause = card.querySelector(".queue-pause");
      text(words, paused ? "Paused: waiting jobs do not start." : waiting.length ? `${waiting.length} waiting` : "");
      words.classList.toggle("warning", paused);
      text(pause, paused ? "Resume queue" : "Pause queue");
      pause.disabled = false;
      pause.onclick = act(paused ? "resume_queue" : "pause_queue");
      slot(pause, paused || waiting.length > 0);
    }
  };
})();
