"use strict";
/* The preflight card beside the form: what will train, the arithmetic of the length, and what is wrong. */
(() => {
  const atelier = window.atelier, {h, text, show, byId} = atelier;

  const fact = (name, value) => [h("dt", {}, name), h("dd", {class: "figures"}, value)];
  const buckets = (list) => {
    const words = list.map((bucket) => `${bucket.width}\u00a0x\u00a0${bucket.height}\u00a0(${bucket.pictures})`);
    return words.length > 4 ? `${words.slice(0, 4).join(", ")} and ${words.length - 4} more sizes` : words.join(", ");
  };

  atelier.checking = () => {
    const verdict = byId("preflight-verdict");
    if (verdict) { text(verdict, "Looking at the pictures ..."); verdict.dataset.state = "busy"; }
  };

  atelier.parts.checks = (data) => {
    const problems = data.problems || [], errors = problems.filter((problem) => problem.level === "error").length;
    const verdict = byId("preflight-verdict");
    if (!verdict) return;
    const all = (data.trained || 0) + (data.skipped || 0);
    const words = data.checking && data.trained === undefined && !errors ? "Looking at the pictures ..."
      : errors ? `${errors} thing${errors === 1 ? "" : "s"} to mend` : `${data.trained} of ${all} pictures will train`;
    text(verdict, words);
    verdict.dataset.state = errors ? "bad" : data.checking ? "busy" : "fine";
    for (const id of ["start", "enqueue"]) if (byId(id)) byId(id).classList.toggle("blocked", errors > 0);
    const line = byId("length-line");
    if (data.trained !== undefined) {
      text(line, data.sentence || "");
      byId("preflight-facts").replaceChildren(...[
        fact("Pictures, captions", `${data.trained}, ${data.captions_found}`),
        fact("Sizes", buckets(data.buckets)),
        fact("Steps", `${data.total_steps} in ${data.epochs} ${data.epochs === 1 ? "pass" : "passes"}`),
        data.longest_tokens === null ? [] : fact("Longest caption", `${data.longest_tokens} of ${data.token_limit} tokens`),
      ].flat());
    } else { text(line, ""); byId("preflight-facts").replaceChildren(); }
    byId("preflight-problems").replaceChildren(...(problems.length ? [atelier.problems(problems)] : []));
    crops(data.pictures || []);
  };

  /* Pictures as they will be cropped: the frame fills the box, the rest lies outside. */
  const crops = (pictures) => {
    const holder = byId("preflight-pictures");
    const key = JSON.stringify(pictures);
    show(byId("first-pictures"), pictures.length > 0);
    if (holder.dataset.key === key) return;
    holder.dataset.key = key;
    holder.replaceChildren(...pictures.map((picture) => {
      const [left, top, right, bottom] = picture.frame, width = right - left, height = bottom - top;
      const image = h("img", {src: picture.url, alt: picture.caption, loading: "lazy", decoding: "async"});
      image.style.cssText = `width:${100 / width}%;height:${100 / height}%;left:${-left / width * 100}%;top:${-top / height * 100}%`;
      const box = h("span", {class: "crop-box", title: `${picture.caption}\n${picture.bucket}`}, image);
      box.style.aspectRatio = String(picture.ratio);
      return h("figure", {}, box);
    }));
  };
})();
