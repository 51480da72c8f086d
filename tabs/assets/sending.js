"use strict";
/* Changes of fields of boards (tabs/markup.py) on their way to the server. One that a proxy answers with an error is sent again: it
   changes nothing that it has changed already. Where that does not help, it is named. Other messages and uploads that fail are reported. */
(() => {
  const atelier = window.atelier, LOST = "atelier-lost-changes", MISSED = "atelier-missed-press";
  const AGAIN = [400, 1000];  // milliseconds; the server waits two seconds for one that is missing (Browsers.in_turn)
  const PATIENCE = 4000;  // milliseconds until a loaded page shows what the server has
  const TRANSIENT = [429, 502, 503, 504];
  const sending = new Map();  // number of a change -> {key, value, words, lost, lasts: whether a loaded page shows it}

  /** A change was sent. lost: called if the server does not get it */
  atelier.sends = (number, field, lost) => {
    const title = (field.labels && field.labels[0] && field.labels[0].querySelector("span")) || {}, value = valueOf(field);
    sending.set(number, {lasts: field.dataset.act !== "find", key: keyOf(field), value, words: `${title.textContent || field.ariaLabel || field.dataset.arg} to "${value.slice(0, 60)}"`, lost});
  };
  const valueOf = (field) => field.type === "checkbox" ? (field.checked ? "on" : "off") : field.value;
  const keyOf = ({id, dataset}) => id ? `#${CSS.escape(id)}` : `[data-act="${CSS.escape(dataset.act)}"][data-arg="${CSS.escape(dataset.arg || "")}"]`;
  const isShown = ({key, value}) => [...document.querySelectorAll(key)].some((field) => (field.type !== "radio" || field.checked) && atelier.sameValue(valueOf(field), value));
  const name = (words, title, before, after) => atelier.say({kind: "error", title, text: `${before} ${words}. ${after}`});
  const eventIn = ({body}) => { try { return JSON.parse(body).event_data; } catch { return null; } };
  const numberIn = (how) => { const {field, turn} = eventIn(how || {}) || {}; return field ? turn : 0; };

  /* The button that was pressed last, until the server has answered: a message names it where it does not. */
  let pressed = "", leaving = false;
  addEventListener("click", ({target}) => { const button = target.closest && target.closest("button:not([role=tab])"); pressed = button ? button.ariaLabel || button.textContent.trim() : ""; }, true);
  addEventListener("beforeunload", () => { leaving = true; });
  const OF_PERSON = /gradio_api\/(upload|run\/predict)(\?|$)/;
  /** Send a request of Gradio's and report its failure, which Gradio shows as "Error" or not at all. A tick asks again by itself, and
      Gradio loads the page again after a message that was not answered, which then names the button. */
  const sendAndReport = async (where, how) => {
    const files = how.body instanceof FormData ? how.body.getAll("files").map((file) => file.name).join(", ") : "";
    const ofPerson = JSON.stringify(eventIn(how)) !== "{}", button = pressed;
    const report = async (answer) => atelier.parts.said({kind: "error", title: files ? "Not uploaded" : button ? `Not done: ${button}` : "Not done", about: files && "drop", problems: [await atelier.failure(answer, files.slice(0, 200))]});
    try {
      const answer = await send(where, how);
      if (!answer.ok && ofPerson) await report(answer);
      else if (files) atelier.succeeded("drop");
      if (ofPerson) pressed = "";
      return answer;
    } catch (error) {
      if (files) await report(null);
      else if (ofPerson && button && !leaving) atelier.remember(MISSED, button, true);
      throw error;
    }
  };

  const send = window.fetch;
  window.fetch = async (where, how) => {
    const number = sending.size ? numberIn(how) : 0, change = sending.get(number);
    if (!change) return OF_PERSON.test(where) ? sendAndReport(where, how) : send(where, how);
    let answer;
    try {
      answer = await send(where, how);
      for (const wait of AGAIN) {
        if (!TRANSIENT.includes(answer.status)) break;
        await new Promise((done) => setTimeout(done, wait));
        answer = await send(where, how);
      }
    } catch (error) {  // the page is loaded again when the server is back, or it is being left, and the server may have the change
      const {key, value, words} = change;
      if (change.lasts) atelier.remember(LOST, JSON.stringify([...recalled(), {key, value, words}]), true);
      throw error;
    } finally { sending.delete(number); }
    if (!answer.ok) {
      change.lost();
      name(change.words, "Not confirmed", "The server did not answer when you changed", "Check the value, and enter it again.");
    }
    return answer;
  };
  const recalled = () => JSON.parse(atelier.recall(LOST, true) || "[]");
  atelier.whenReady(async () => {
    const changes = recalled(), missed = atelier.recall(MISSED, true);
    for (const each of [LOST, MISSED]) atelier.remember(each, "", true);
    if (missed) name(`"${missed}"`, "Not confirmed", "The server could not be reached when you pressed", "See whether it was done, otherwise press it again.");
    await atelier.whenFound(() => changes.every(isShown), changes.length ? PATIENCE : 0);
    const words = changes.filter((change) => !isShown(change)).map((change) => change.words).join(" and ");
    if (words) name(words, "Not saved", "The server could not be reached when you changed", "Enter it again.");
  });
})();
