"use strict";
/* The header on every tab: project, model family, device and memory, the running job with Stop. */
(() => {
  const atelier = window.atelier, {h, text, show, attr, byId} = atelier;

  let ended = null;  // the sentences on jobs at the last look
  let job = null, trained = null, stopped = "";  // what runs, and the job for which Stop was pressed last

  /** What a job does, in parts; on a phone those in a list are left out. */
  const words = (job) => {
    if (job.task !== "train" || !job.total) return [[job.stage || job.state, job.title].filter(Boolean).join(" · ")];
    if (job.state === "paused") return ["paused at ", ["step "], `${job.step} of ${job.total}`];
    if (!job.step) return [job.stage || "starting"];
    const pace = atelier.pace(job.seconds_per_step), left = job.eta_seconds > 0 ? ` · ${atelier.clock(job.eta_seconds)} left` : "";
    return [["step "], `${job.step} of ${job.total}`, pace ? [` · ${pace}`] : "", left];
  };

  /** Whether the job stops, by the server or for as long as its answer is waited for: a stop can be refused or lost. */
  const drawStop = () => {
    const stop = byId("header-stop");
    if (!stop || !job) return;
    stop.disabled = job.stopping || stopped === job.entry;
    text(stop, !stop.disabled ? "Stop" : job.task === "train" ? "Saving ..." : "Stopping ...");
  };

  /* "Skip to content" is for the open tab. */
  atelier.on("click", "#atelier-header .skip", (_, event) => {
    const open = [...document.querySelectorAll("#tabs > [role=tabpanel]")].find((each) => each.checkVisibility());
    const goal = (atelier.openTab() === "Generate" && byId("gen-prompt")) || (open && atelier.firstStop(open));
    if (!goal) return;
    event.preventDefault();
    goal.focus();
  });

  /** The last training that has ended, until Monitor was opened. */
  const drawTrained = () => {
    if (trained && atelier.openTab() === "Monitor") atelier.remember("atelier-seen", trained.run);
    const link = byId("header-trained"), isNew = !!trained && atelier.recall("atelier-seen") !== trained.run;
    show(byId("header-idle"), !job && !isNew);
    show(link, isNew);
    if (!isNew) return;
    text(link, `${trained.title} is trained`);
    attr(link, "href", `#Monitor/${encodeURIComponent(trained.run)}`);
  };
  addEventListener("hashchange", () => setTimeout(drawTrained));

  atelier.parts.status = (status) => {
    text(byId("header-device"), status.device);
    const share = status.memory_total ? status.memory_used / status.memory_total : 0;
    const said = status.memory_total ? `${(status.memory_used / 2 ** 30).toFixed(1)} of ${atelier.memory(status.memory_total)}` : "";
    const bar = byId("header-memory");
    if (bar) { bar.style.width = `${Math.min(100, share * 100).toFixed(1)}%`; bar.classList.toggle("high", share > 0.9); }
    text(byId("header-memory-words"), said);
    attr(byId("header-meter"), "aria-valuenow", Math.round(share * 100));
    attr(byId("header-meter"), "aria-valuetext", said);
    job = status.job;
    trained = job ? null : status.trained;
    drawTrained();
    const waiting = byId("header-waiting");
    show(waiting, status.waits.length > 0);
    text(waiting, status.waits.length ? `${status.waits.length} waiting` : "");
    attr(waiting, "title", status.waits.map((wait) => `${wait.title}: ${wait.message}`).join("\n") || null);
    atelier.waits = status.waits;
    atelier.tellWaits();
    text(byId("header-idle"), status.tool || "Idle");
    show(byId("header-job"), !!job);
    atelier.slot(byId("header-stop"), !!job && job.own);
    if (job) {
      const link = byId("header-job"), parts = words(job);
      if (link.textContent !== parts.flat().join("")) link.replaceChildren(...parts.map((part) => Array.isArray(part) ? h("span", {class: "spare"}, part) : part));
      attr(byId("header-job"), "href", job.task === "train" && job.run ? `#Monitor/${encodeURIComponent(job.run)}` : job.task === "generate" ? "#Generate" : "#Monitor");
      attr(byId("header-job"), "title", job.title);
      const stop = byId("header-stop");
      if (stop) Object.assign(stop.dataset, {entry: job.entry || "", run: job.run || ""});
      drawStop();
    }
    document.title = job && job.total ? `${Math.floor(100 * job.step / job.total)} % · Atelier` : "Atelier";
  };

  /** What each job waits for, wherever there is a place for it. */
  atelier.tellWaits = () => {
    for (const place of document.querySelectorAll("[data-waits]")) {
      const wait = (atelier.waits || []).find((each) => each.id === place.dataset.waits);
      if (wait) text(place, wait.message);
    }
  };
  new MutationObserver(() => { if (document.querySelector("[data-waits]:empty")) atelier.tellWaits(); }).observe(document.documentElement, {childList: true, subtree: true});

  atelier.parts.ended = ({sentences}) => {
    for (const id in ended && sentences) if (!(id in ended)) {
      const wait = (atelier.waits || []).find((each) => id === `${each.id} waiting`);
      atelier.hear(wait ? `${sentences[id]}: ${wait.message}` : sentences[id]);
    }
    ended = sentences;
  };

  atelier.parts.names = (names) => {
    text(byId("header-project"), names.project);
    text(byId("header-family"), names.family);
    show(byId("header-family"), !!names.family);
    attr(byId("header-family"), "title", names.evidence);
  };

  atelier.whenReady(() => {
    byId("header-waiting").addEventListener("click", () => setTimeout(() => {
      const queue = document.querySelector("#monitor .queue-card");
      queue.tabIndex = -1;
      queue.focus();
    }, 100));
    const stop = byId("header-stop");
    if (stop) stop.addEventListener("click", () => {
      const {entry} = stop.dataset;
      stopped = entry;
      atelier.once(stop, () => { if (stopped === entry) stopped = ""; drawStop(); });
      drawStop();
      atelier.stay(stop.dataset.run);
      atelier.command("cancel", {entry, ask: atelier.ask()});
    });
  });
})();
