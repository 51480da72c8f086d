"use strict";
/* Masks of the dataset: the line below the caption that says how training treats the open image, and what its button opens
   (painter.js). The server's side is tabs/captions/mask_painting.py. */
(() => {
  const atelier = window.atelier, {h, byId} = atelier;
  const SOON = 150;  // milliseconds that an image is open before its mask is asked for
  let key = "", shown = "", timer = 0, turn = 0, drawn = "";

  const ask = (asked) => atelier.question("masks", asked, ["The mask is too large to send", "paint with hard edges, or resize the image on Tools"]);

  /** Called with the open image's key whenever it or anything on the tab has changed (captions.js). */
  atelier.showMask = (open, stamp) => {
    byId("cap-paint").disabled = !open;
    if (shown === `${open} ${stamp}`) return;
    if (key !== open) { drawn = ""; byId("cap-mask-line").replaceChildren(); }
    key = open;
    shown = `${open} ${stamp}`;
    clearTimeout(timer);
    if (open) timer = setTimeout(look, SOON, open);
  };
  const look = async (of) => {
    const own = ++turn, answer = await ask({act: "look", key: of});
    if (own === turn) draw(of, answer);  // else a later look, or what has been done since, says it better
  };
  const draw = (of, answer) => {
    turn += 1;
    const fresh = JSON.stringify([answer.problems, answer.line, answer.offer]);
    if (of !== key || fresh === drawn) return;  // a button that is being pressed stays
    drawn = fresh;
    const refused = answer.problems && answer.problems[0];
    byId("cap-mask-line").replaceChildren(h("span", {class: "hint"}, refused ? `No mask can be painted: ${refused.what}.` : answer.line),
      ...(answer.offer ? [h("button", {type: "button", class: "btn primary", id: "cap-use-masks"}, "Train with these masks")] : []));
  };

  const paint = async (of, said = "") => {
    const found = await ask({act: "open", key: of});
    if (found.problems) return atelier.complain(found.problems);
    let over = found.version, always = false, saved = "";
    const next = async () => {
      atelier.captions.next();
      if (await atelier.whenFound(() => key !== of)) paint(key, saved);
    };
    const note = [said, found.note].filter(Boolean).join(". ");  // a message would be behind the painter
    atelier.paint({...found, note, next, save: async (png) => {
      const answer = await ask({act: "save", key: of, png, over, always});
      if (answer.problems) { always = answer.problems.some((problem) => problem.code === "mask.changed-meanwhile"); return answer.problems; }
      atelier.say({kind: "success", text: saved = answer.said});
      draw(of, answer);
      return [];
    }});
  };
  const use = async (of) => {
    const answer = await ask({act: "use", key: of});
    if (answer.problems) return atelier.complain(answer.problems);
    atelier.say({kind: "success", text: answer.said});
    draw(of, answer);
    byId("cap-paint").focus({preventScroll: true});
  };
  atelier.on("click", "#cap-paint, #cap-use-masks", ({id}) => { if (key) (id === "cap-paint" ? paint : use)(key); });
})();
