"use strict";
/* The left rail of Generate: cards that are added and removed (tabs/generate/cards.py), the list of LoRAs, and the search of all settings. */
(() => {
  const atelier = window.atelier, {h, byId} = atelier;
  const CONTROLS = "button:not([data-act=card_remove]), input, select, textarea";
  const card = (name) => document.querySelector(`#gen-form [data-card="${name}"]`);

  /** Wait until `find` finds something, and do something with it. */
  const once = async (find, work) => { const found = await atelier.whenFound(find); if (found) work(found); };
  const firstIn = (node) => [...node.querySelectorAll(CONTROLS)].find((each) => !each.disabled && each.checkVisibility());

  /** A card comes into sight with the keyboard in it; one of ControlNets without any opens their list. */
  const go = (name) => once(() => { const found = card(name); return found && !found.hidden && found; }, (found) => {
    const list = name === "controls" && !found.querySelector(".net") && found.querySelector("[data-pick=control_net]");
    const first = list || firstIn(found);
    found.scrollIntoView({block: "nearest"});
    if (first) first.focus({preventScroll: true});
    if (list) list.click();
  });
  atelier.on("click", "#gen-add [data-act=card_add]", ({dataset}) => go(dataset.arg));
  atelier.on("click", "#gen-form [data-act=card_remove]", ({dataset: {arg}}) => once(() => card(arg) && card(arg).hidden, () => {
    const back = document.querySelector(`#gen-add [data-act=card_add][data-arg="${arg}"]`);
    if (back && (document.activeElement === document.body || !document.activeElement.checkVisibility())) back.focus({preventScroll: true});
  }));

  /* After a ControlNet is added, the keyboard goes to its control image. */
  atelier.on("change", "#gen-form [data-act=net_add]", () => {
    const rows = () => [...document.querySelectorAll("#gen-form .net")], before = rows().length;
    once(() => rows().length > before && rows().pop(), (row) => {
      const at = document.activeElement;
      if (at === document.body || (at.closest("[data-card=controls]") && !at.closest(".net"))) row.querySelector("input.text").focus();
    });
  });

  /* Width and height stay in sight once they were asked for, also while they are those of a ratio. */
  atelier.on("change", "#gen-settings [name=gen-ratio]", ({value}) => { document.body.dataset.size = value ? "" : "custom"; });
  document.addEventListener("atelier-drawn", () => {
    const custom = byId("gen-ratio-custom");
    if (custom && document.body.dataset.size === "custom") custom.checked = true;
  });

  /* ---- the list of LoRAs lies over the rail ---- */

  const openList = () => document.querySelector("#gen-add .picker[open]");
  const closeList = () => { const list = openList(); if (list) list.querySelector("summary").click(); };
  document.addEventListener("click", ({target, isTrusted}) => { if (isTrusted && openList() && !target.closest("#gen-add .picker, dialog, #said")) closeList(); });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !openList() || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    const opener = openList().querySelector("summary");
    closeList();
    opener.focus();
  });
  atelier.on("click", "#gen-add .picker > summary", (opener) => setTimeout(() => { if (opener.parentElement.open && document.activeElement === opener) byId("gen-find").focus(); }));

  atelier.on("click", ".lora-steps > summary", ({parentElement: strip}) => setTimeout(() => {
    const here = strip.open && strip.querySelector("[aria-pressed=true]");
    if (here) here.scrollIntoView({block: "nearest", inline: "nearest"});
  }));

  /* ---- the search ---- */

  const titleOf = (field) => {
    const title = (field.labels && field.labels[0] ? field.labels[0] : field).cloneNode(true);
    title.querySelectorAll("select").forEach((inside) => inside.remove());  // its options are no part of its title
    return title.textContent.trim();
  };
  const adds = (field) => !!field.closest("#gen-add");  // a button of a card
  const groupOf = (field) => {
    if (adds(field)) return field.title;
    const row = field.closest("[data-card], .gen-groups > details"), title = row && row.querySelector("h3, summary b");
    return title ? title.textContent : "first screen";
  };
  const found = (typed) => {
    const query = atelier.shortSetting(typed);
    if (!query) return [];
    return [...document.querySelectorAll("#gen-add :is(summary, [data-act=card_add]), :is(#gen-prompts, #gen-form) [data-act=field]")].map((field) => {
      const name = field.dataset.arg || "", facts = {title: titleOf(field), unit: "", kohya: "", help: field.getAttribute("aria-description") || "", groupTitle: groupOf(field)};
      return [atelier.matchSetting(query, `gen.${name}`, facts), field];
    }).filter(([rank]) => rank >= 0).sort((a, b) => a[0] - b[0]).map(([, field]) => field);
  };
  /** Open what a field is in, and go to it. */
  const goToField = (found) => {
    const {id} = found, field = () => byId(id), inCard = found.closest("[data-card]");
    byId("gen-search").dispatchEvent(new Event("atelier-found"));
    if (adds(found)) return found.click();
    if (inCard && inCard.hidden) document.querySelector(`#gen-add [data-act=card_add][data-arg="${inCard.dataset.card}"]`).click();
    once(() => { const node = field(), at = node && node.closest("[data-card]"); return node && !(at && at.hidden) && node; }, () => {
      for (let row = field().closest("details[data-group]"); row; row = row.parentElement.closest("details[data-group]")) if (!row.open) row.querySelector("summary").click();
      if (field().closest(".gen-own-size")) byId("gen-ratio-custom").click();
      setTimeout(() => { field().scrollIntoView({block: "center"}); field().focus({preventScroll: true}); });
    });
  };
  const filter = (fields) => {
    const rows = fields && new Set(fields.map((field) => field.closest(".gen-groups > details")));
    for (const row of document.querySelectorAll("#gen-more .gen-groups > details")) row.classList.toggle("no-match", !!rows && !rows.has(row));
  };
  document.addEventListener("focusin", ({target}) => {
    if (target.id === "gen-search") atelier.searchBox(target, byId("gen-found"), {
      found, filter, choose: goToField, none: () => [h("li", {class: "none"}, "No setting found")],
      row: (field) => [h("strong", {}, titleOf(field)), h("span", {}, groupOf(field)), adds(field) ? null : h("code", {}, field.dataset.arg)]});
  });
})();
