"use strict";
/* The queue on Monitor and on Runs: what runs, what waits in which order, and what has ended that is no training. */
(() => {
  const atelier = window.atelier, {h, text, attr, show, slot} = atelier;
  let moved = "";  // the job that was moved, until the list shows it
  const act = (name, more, run) => (event) => { moved = name === "move" ? more.entry : ""; atelier.once(event.currentTarget); if (run) atelier.stay(run); atelier.command(name, {...more, ask: atelier.ask()}); };
  /** What an entry does not offer keeps its place: a click on Cancel that comes late must not stop what has begun. */
  const button = (offered, words, label, name, more, off, run) => {
    const made = h("button", {type: "button", class: "btn small quiet", "data-entry": more.entry || more.entries, "data-action": words, "data-place": name === "move" ? name : null, "aria-label": label, title: label, disabled: off, onclick: act(name, more, run)}, words);
    slot(made, offered);
    return made;
  };
  const head = (entry, leads) => [h("span", {class: "chip"}, entry.paused ? "paused" : entry.state), entry.kind ? h("span", {class: "kind"}, entry.kind) : null,
    leads ? h("a", {href: leads}, atelier.parted(entry.title)) : h("span", {class: "title"}, atelier.parted(entry.title))];
  const by = (entry) => entry.by ? h("span", {class: "kind by"}, entry.by) : null;
  const row = (entry, waits, moves = waits && entry.lane === "device") => h("li", {class: `state-${entry.state}`},
    head(entry, entry.run && entry.task === "train" ? `#Monitor/${encodeURIComponent(entry.run)}` : ""),
    by(entry), h("span", {class: "hint"}), h("span", {class: "grow"}),
    h("span", {class: "slots"},
      button(entry.own && moves, "Up", `Move ${entry.called} up`, "move", {entry: entry.id, position: entry.up}, entry.up === null),
      button(entry.own && moves, "Down", `Move ${entry.called} down`, "move", {entry: entry.id, position: entry.down}, entry.down === null),
      button(entry.own && waits, "Cancel", `Cancel ${entry.called}`, "cancel", {entry: entry.id, waits: true}),
      button(entry.own && entry.state === "running", "Stop", `Stop ${entry.called}`, "cancel", {entry: entry.id}, false, entry.run)));
  const endedRow = (entry) => h("li", {class: `state-${entry.state}`}, head(entry, entry.tab ? `#${entry.tab}` : ""), by(entry),
    h("span", {class: "hint"}, entry.message), h("span", {class: "grow"}),
    entry.images.length ? h("span", {class: "small-images"}, entry.images.map((image) => h("a", {class: "small-image", href: image.whole, target: "_blank", rel: "noopener"}, h("img", {src: image.small, alt: `Image of ${entry.title}`, loading: "lazy", width: 40, height: 40})))) : null,
    entry.task === "train" ? h("button", {type: "button", class: "btn small quiet", onclick: () => { atelier.command("settings", {entry: entry.id}); atelier.goTo("Train"); }}, "Use its settings") : null,
    button(entry.own, "Clear", `Clear ${entry.called}`, "forget", {entries: [entry.id]}));

  /** The entries with "called": the title, with a number where others have the same. */
  const called = (entries) => entries.map((entry) => {
    const same = entries.filter((each) => each.title === entry.title);
    return {...entry, called: same.length > 1 ? `${entry.title}, ${same.indexOf(entry) + 1} of ${same.length}` : entry.title};
  });
  /** Draw a list anew only where it has changed, so that the keyboard keeps its place. */
  const fill = (list, entries, made, none) => {
    if (!atelier.differs(list, entries.map((entry) => ({...entry, doing: ""})))) return;
    list.replaceChildren(...(entries.length ? called(entries).map(made) : none ? [h("li", {class: "none"}, none)] : []));
  };

  atelier.parts.queue = ({paused, paused_by, why, interrupted, resumable, entries, ended}) => {
    const waiting = entries.filter((entry) => entry.state === "waiting"), at = waiting.findIndex((entry) => entry.id === moved);
    if (at >= 0) atelier.hear(`${waiting[at].title}: ${at + 1} of ${waiting.length} in the queue`);
    moved = "";
    for (const card of document.querySelectorAll(".queue-card")) {
      const list = card.querySelector(".queue-now"), fold = card.querySelector(".ended");
      fill(list, entries, (entry) => row(entry, entry.state === "waiting"), "The queue is empty.");
      entries.forEach((entry, n) => text(list.children[n].querySelector(".hint"), entry.doing));
      show(fold, ended.length > 0);
      text(fold.querySelector("summary .hint"), String(ended.length));
      fill(fold.querySelector(".queue"), ended, endedRow);
      const clear = fold.querySelector(".queue-clear");
      clear.disabled = false;
      clear.onclick = act("forget", {entries: ended.map((entry) => entry.id)});
      const words = card.querySelector(".queue-words"), pause = card.querySelector(".queue-pause");
      text(words, paused ? `Paused${paused_by ? ` by ${paused_by}` : ""}: ${why ? `${why}. Waiting` : "waiting"} jobs do not start.` : waiting.length ? `${waiting.length} waiting` : "");
      words.classList.toggle("warning", paused);
      const first = card.querySelector(".queue-first"), titles = interrupted.join(", ");
      show(first, interrupted.length > 0);
      attr(first, "title", titles ? `Puts ${titles} at the head of the queue, from the newest training state, and resumes the queue.` : null);
      first.onclick = act("continue_first");
      first.disabled = false;
      text(pause, paused ? "Resume queue" : "Pause queue");
      pause.disabled = !resumable;
      attr(pause, "title", resumable ? null : `Only ${paused_by} can resume it.`);
      pause.onclick = act(paused ? "resume_queue" : "pause_queue");
      slot(pause, paused || waiting.some((entry) => entry.lane === "device"));
    }
  };
})();
