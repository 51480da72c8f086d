"use strict";
/* The initial image, its mask and the regions of Generate: dropped, pasted, uploaded, or painted (painter.js). The server's side is
   tabs/generate/painting.py. A field that changes by it changes as if it were typed. */
(() => {
  const atelier = window.atelier, {byId} = atelier;
  const CLOSED = 50;  // milliseconds until the painter has closed and given the keyboard back
  const field = (name) => byId(`gen-${name}`);
  const typed = (name) => { const found = field(name); return found ? found.value.trim() : ""; };

  const ask = (asked) => atelier.question("paint", {...asked, image: typed("image_path"), mask: typed("mask_path"), map: typed("region_map"), prompt: typed("prompt")},
    ["The painting is too large to send", "paint with hard edges, or use a smaller image"]);

  const put = (fields) => {
    for (const [name, value] of Object.entries(fields)) {
      const found = field(name);
      if (!found || found.value === value) continue;
      found.value = value;
      found.dispatchEvent(new Event("change", {bubbles: true}));
    }
  };
  /** sent: by the image's Inpaint, so Generate is next; otherwise the page stays where it is */
  const paint = async (what, sent) => {
    const found = await ask({act: what}), at = scrollY;
    if (found.problems) return atelier.complain(found.problems);
    atelier.paint({...found, save: async (png) => {
      const answer = await ask({act: `${what} save`, png});
      if (answer.problems) return answer.problems;
      put(answer.fields);
      atelier.say({kind: "success", text: answer.said});
      setTimeout(() => { if (sent) byId("gen-draw").scrollIntoView({block: "center"}); else scrollTo(0, at); }, CLOSED);
      return [];
    }});
  };

  const FILES = {image_to_image: "gen-initial", controls: "gen-control"};  // card: what takes its image
  const input = (id) => document.querySelector(`#${id} input[type=file]`);
  atelier.on("click", "[data-paint]", (button, {isTrusted}) => {
    if (button.dataset.paint !== "upload") return paint(button.dataset.paint, !isTrusted);
    const taken = input(button.dataset.into || FILES.image_to_image);
    if (taken) taken.click();
  });

  /* An image dropped on a card. */
  const card = (event) => {
    const found = event.target.closest && event.target.closest("#gen-cards [data-card]");
    return found && FILES[found.dataset.card] && [...event.dataTransfer.types].includes("Files") ? found : null;
  };
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) document.addEventListener(kind, (event) => {
    const found = card(event);
    if (!found) return;
    event.preventDefault();
    found.classList.toggle("takes", kind === "dragenter" || kind === "dragover");
    if (kind === "drop") atelier.uploadFiles(FILES[found.dataset.card], [...event.dataTransfer.files].slice(0, 1));
  });
  /* An image that was copied: the initial one, unless a field of another card has the keyboard. Office programs copy a text and its image. */
  document.addEventListener("paste", (event) => {
    const {files, types} = event.clipboardData, image = [...files].find(({type}) => type.startsWith("image/"));
    if (!image || types.includes("text/plain") || atelier.openTab() !== "Generate" || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    const found = event.target.closest && event.target.closest("#gen-cards [data-card]");
    atelier.uploadFiles(FILES[found && found.dataset.card] || FILES.image_to_image, [image]);
  });
})();
