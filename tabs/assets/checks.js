"use strict";
/* The preflight card next to the form: what will train, the arithmetic of the length, and what is wrong. */
(() => {
  const atelier = window.atelier, {h, text, show, byId} = atelier;

  const fact = (name, value) => [h("dt", {}, name), h("dd", {class: "figures"}, value)];
  const buckets = (list) => {
    const words = list.map((bucket) => `${bucket.width}\u00a0x\u00a0${bucket.height}\u00a0(${bucket.images})`);
    return words.length > 4 ? `${words.slice(0, 4).join(", ")} and ${words.length - 4} more sizes` : words.join(", ");
  };

  atelier.checking = () => {
    const verdict = byId("preflight-verdict");
    if (verdict) { text(verdict, "Checking images ..."); verdict.dataset.state = "busy"; }
  };

  atelier.parts.checks = (data) => {
    const problems = data.problems || [], of = (level) => problems.filter((problem) => problem.level === level).length;
    const errors = of("error"), warnings = of("warning") + (data.warned_by_recipe || 0);
    const verdict = byId("preflight-verdict");
    if (!verdict) return;
    const all = (data.trained || 0) + (data.skipped || 0), out = data.held_out ? data.held_out.count : 0;
    const [read, toRead] = data.read || [0, 0], reading = data.undecoded > 0;
    const words = errors ? `Fix ${errors} problem${errors === 1 ? "" : "s"} to start${reading ? ", still reading images" : ""}`
      : reading ? (toRead ? `Reading images: ${read} of ${toRead}` : "Reading images ...")
      : data.checking && data.trained === undefined ? "Checking images ..." : `${warnings ? `${warnings} warning${warnings === 1 ? "" : "s"}, ` : ""}${data.trained} of ${all} images will train${out ? `, ${out} held out for validation` : ""}`;
    text(verdict, words);
    verdict.dataset.state = errors ? "bad" : reading || data.checking ? "busy" : warnings ? "warn" : "fine";
    for (const id of ["start", "enqueue"]) if (byId(id)) byId(id).classList.toggle("blocked", errors > 0);
    const line = byId("length-line");
    if (data.trained !== undefined) {
      text(line, data.sentence || "");
      byId("preflight-facts").replaceChildren(...[
        fact("Images", data.trained === all ? `${all}` : `${data.trained} of ${all}`),
        fact("Captions", `${data.captions_found}`),
        data.trained ? [...fact("Sizes", buckets(data.buckets)), ...fact("Steps", `${data.total_steps} in ${data.epochs} ${data.epochs === 1 ? "epoch" : "epochs"}`)] : [],
        data.longest_tokens === null ? [] : fact("Longest caption", `${data.longest_tokens} of ${data.token_limit} tokens`),
      ].flat());
    } else { text(line, ""); byId("preflight-facts").replaceChildren(); }
    /* What blocks the start or spoils the result stands above all else, advice below the facts. */
    const list = (levels) => { const some = problems.filter((problem) => levels.includes(problem.level)); return some.length ? [atelier.problems(some)] : []; };
    const first = byId("preflight-first");
    if (atelier.differs(first, problems)) {  // buttons stay while images are read: a click is not lost between two messages
      first.replaceChildren(...atelier.remedies(problems), ...list(["error", "warning"]));
      byId("preflight-problems").replaceChildren(...list(["advice"]));
    }
    setup(data.setup);
    held(data.held_out || {count: 0}, all);
    crops(data.images || []);
  };

  /* The offer to set everything up for a person's own images (tabs/dataset/setup_offer.py). */
  const setup = (offer) => {
    const holder = byId("setup-card");
    show(holder, !!offer);
    atelier.put(holder, offer || "");
  };
  atelier.on("click", "#setup-card [data-act]", ({dataset: {act}}) => act === "get_model" ? atelier.openCatalog() : atelier.act(act));

  /* Validation images are named; those that no one chose are put back in one click. */
  const held = ({count, images, automatic}, all) => {
    const holder = byId("preflight-held");
    show(holder, count > 0);
    if (!atelier.differs(holder, [count, images, automatic, all]) || !count) return;
    text(byId("held-words"), `Held out for validation${automatic ? " to find the best checkpoint" : ""}, not trained: ${count} of ${all} images.`);
    byId("held-images").replaceChildren(...images.map((image) => h("img", {src: image.url, alt: image.name, title: image.name, loading: "lazy", width: 44, height: 44})));
    const back = byId("held-back");
    back.disabled = false;
    show(back, automatic);
    back.onclick = () => { atelier.once(back); atelier.act("train_all"); };
  };

  /* Images as they will be cropped, and their control images next to or over them (pairs.js): the frame fills the box, the rest
     lies outside. */
  const crops = (images) => {
    const holder = byId("preflight-images");
    show(byId("first-images"), images.length > 0);
    if (!atelier.differs(holder, images)) return;
    show(byId("preflight-pairs"), images.some((image) => image.control));
    holder.replaceChildren(...images.map((image) => {
      const [left, top, right, bottom] = image.frame, width = right - left, height = bottom - top;
      const img = (src, alt, kind = "") => {
        const shown = h("img", {src, alt, class: kind, loading: "lazy", decoding: "async"});
        shown.style.cssText = `width:${100 / width}%;height:${100 / height}%;left:${-left / width * 100}%;top:${-top / height * 100}%`;
        return shown;
      };
      const box = (kind, ...shown) => {
        const made = h("span", {class: `crop-box ${kind}`, title: `${image.caption}\n${image.bucket}`}, ...shown);
        made.style.aspectRatio = String(image.ratio);
        made.style.width = `${Math.min(image.ratio, 1) * 100}%`;  // a tall one fills the height
        return made;
      };
      const own = img(image.url, image.caption);
      if (!image.control) return h("figure", {}, box("", own));
      const beside = box("control", img(image.control, `Control image of ${image.name}`));
      return h("figure", {class: "paired"}, box("", own, img(image.control, "", "control-over")), beside);
    }));
  };
})();
