"use strict";
/* A list opens when a person asks for it: by a click, an arrow key, Enter, Space or typing. Gradio opens it with the focus and at
   any key, also at Ctrl+C, over what stands below. So Gradio hears of a focus only when the list is opened, and of leaving only what was opened. */
(() => {
  const ASIDE = /^(Tab|Shift|Control|Alt|AltGraph|Meta|CapsLock|F\d+)$/;  // Gradio opens at any key, at Tab after it was left
  const isList = (node) => !!node && !!node.matches && node.matches("input[role=combobox]:not(#cap-tag)");  // Gradio's
  const closed = (list) => list.getAttribute("aria-expanded") !== "true";
  let opened = null, before = "", opening = false;  // the list that was opened since it has the focus, and its text then

  const open = (list) => {
    if (opened !== list) before = list.value;
    opened = list;
    opening = true;
    list.dispatchEvent(new FocusEvent("focus"));
    opening = false;
  };

  /** A shortcut is for the page and the browser alone: all around the list hears of it, but not Gradio's list. */
  const pastTheList = (event) => {
    event.stopImmediatePropagation();
    if (!event.target.parentElement.dispatchEvent(new KeyboardEvent(event.type, event))) event.preventDefault();
  };

  document.addEventListener("focus", (event) => {
    if (!isList(event.target) || opening) return;
    opened = null;
    event.stopImmediatePropagation();
  }, true);
  document.addEventListener("blur", (event) => {
    if (isList(event.target) && opened !== event.target) event.stopImmediatePropagation();
    opened = null;
  }, true);
  document.addEventListener("click", (event) => { if (isList(event.target) && closed(event.target)) open(event.target); }, true);
  document.addEventListener("input", (event) => {  // pasted or dropped
    if (isList(event.target) && opened !== event.target) open(event.target);
  }, true);

  /* The browser's own list would change at each key while it is closed, and the form with it. */
  document.addEventListener("keydown", (event) => {
    const list = event.target, plain = !event.ctrlKey && !event.metaKey && !event.altKey;
    if (!plain || !list.showPicker || !list.matches("#train-form select") || !["ArrowDown", "ArrowUp", "ArrowLeft", "ArrowRight", "Enter"].includes(event.key)) return;
    event.preventDefault();
    list.showPicker();
  });

  document.addEventListener("keydown", (event) => {
    const list = event.target;
    if (!isList(list) || list.disabled) return;
    const plain = !event.ctrlKey && !event.metaKey && !event.altKey;
    const types = plain && (event.key.length === 1 || event.key === "Backspace" || event.key === "Delete");
    const typed = opened === list && list.value !== before;
    const asks = plain && (["ArrowDown", "ArrowUp", "Enter"].includes(event.key) || (types && list.readOnly) || (event.key === " " && !list.value));
    if (ASIDE.test(event.key)) event.stopImmediatePropagation();
    else if (closed(list) && !plain) pastTheList(event);
    else if (!closed(list)) {
      if (list.readOnly && types) { event.preventDefault(); event.stopImmediatePropagation(); }  // Gradio would filter by the choice
    } else if (asks && !typed) {
      event.preventDefault();
      event.stopImmediatePropagation();
      open(list);
    } else if (types && opened !== list) open(list);
  }, true);
})();
