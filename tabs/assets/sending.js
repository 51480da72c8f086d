"use strict";
/* Changes of fields of boards (tabs/markup.py) on their way to the server. One that a proxy answers with an error is sent again: it
   changes nothing that it has changed already. Where that does not help, it is named. */
(() => {
  const atelier = window.atelier, LOST = "atelier-lost";
  const AGAIN = [400, 1000];  // milliseconds; the server waits two seconds for one that is missing (Browsers.in_turn)
  const TRANSIENT = [429, 502, 503, 504];
  const sending = new Map();  // number of a change -> {words, lost}

  /** A change was sent. lost: called if the server does not get it */
  atelier.sends = (number, field, lost) => {
    const title = (field.labels && field.labels[0] && field.labels[0].querySelector("span")) || {}, value = field.type === "checkbox" ? (field.checked ? "on" : "off") : field.value;
    sending.set(number, {words: `${title.textContent || field.ariaLabel || field.dataset.arg} to "${value.slice(0, 60)}"`, lost});
  };
  const name = (words, title, before, after) => atelier.say({kind: "error", title, text: `${before} ${words}. ${after}`});
  const numberIn = (how) => { try { const {field, turn} = JSON.parse(how.body).event_data; return field ? turn : 0; } catch { return 0; } };

  const send = window.fetch;
  window.fetch = async (where, how) => {
    const number = sending.size ? numberIn(how) : 0, change = sending.get(number);
    if (!change) return send(where, how);
    let answer;
    try {
      answer = await send(where, how);
      for (const wait of AGAIN) {
        if (!TRANSIENT.includes(answer.status)) break;
        await new Promise((done) => setTimeout(done, wait));
        answer = await send(where, how);
      }
    } catch (error) {  // the page is loaded again when the server is back
      atelier.remember(LOST, [atelier.recall(LOST, true), change.words].filter(Boolean).join(" and "), true);
      throw error;
    } finally { sending.delete(number); }
    if (!answer.ok) {
      change.lost();
      name(change.words, "Not confirmed", "The server did not answer when you changed", "Check the value, and enter it again.");
    }
    return answer;
  };
  atelier.whenReady(() => {
    const words = atelier.recall(LOST, true);
    atelier.remember(LOST, "", true);
    if (words) name(words, "Not saved", "The server could not be reached when you changed", "Enter it again.");
  });
})();
