"use strict";
// One row at a time. Everything of the data goes onto the page as text, never as markup.
(() => {
  const form = JSON.parse(document.getElementById("form").textContent);
  const at = (id) => document.getElementById(id);
  const place = `batchchat-review-${form.id}`;
  const state = { answers: {}, order: [], reviewer: "", saved: 0, shown: 0 };
  let marked = 0;
  let draft = {};

  // A browser may refuse to keep anything, such as in a private window: then the answers live as long as the page.
  const keep = () => {
    try {
      localStorage.setItem(place, JSON.stringify(state));
    } catch {
      say("This browser keeps nothing: save your answers before you leave the page.");
    }
  };
  const restore = () => {
    try {
      Object.assign(state, JSON.parse(localStorage.getItem(place) || "{}"));
    } catch {
      // What cannot be read is as good as nothing: begin anew.
    }
  };
  const say = (text) => { at("message").textContent = text; };
  const element = (name, text, attributes = {}) => {
    const made = document.createElement(name);
    if (text !== null) made.textContent = text;
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  const written = (value) => (typeof value === "string" ? value : JSON.stringify(value));
  const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
  const row = () => form.rows[state.shown];
  // Rows that are equal to the letter share an answer.
  const answered = () => form.rows.filter((each) => state.answers[each.content]).length;

  const showProgress = () => {
    const done = answered();
    at("progress").textContent = `${done} of ${form.rows.length} reviewed`;
    at("bar").max = form.rows.length || 1;
    at("bar").value = done;
    at("undo").disabled = state.order.length === 0;
    at("save").textContent = done > state.saved ? `Save ${done} answer${done === 1 ? "" : "s"}` : "Save answers";
  };

  const showColumns = () => {
    const list = at("row");
    list.replaceChildren();
    for (const [name, value] of Object.entries(row().row)) {
      list.append(element("dt", name));
      const shown = element("dd", null, { dir: "auto" });
      const images = (row().images || {})[name];
      if (images) for (const url of images) shown.append(element("img", null, { src: url, alt: name }));
      else shown.textContent = value === null ? "—" : written(value);
      list.append(shown);
    }
  };

  const textOf = (field, value) => {
    if (field.kind === "text") return value === null || value === undefined ? "" : written(value);
    return value === undefined ? "" : JSON.stringify(value, null, field.kind === "json" ? 1 : 0);
  };

  const showFields = () => {
    at("answer").replaceChildren();
    form.fields.forEach((field, number) => {
      const box = element("fieldset", null, number === marked ? { class: "marked" } : {});
      box.append(element("legend", field.name));
      if (field.kind === "choice") {
        const choices = element("div", null, { class: "choices" });
        field.choices.forEach((choice, place) => {
          const button = element("button", null, { type: "button", "aria-pressed": same(draft[field.name], choice) });
          if (place < 9) button.append(element("kbd", String(place + 1)), " ");
          button.append(written(choice));
          if (same(row().answer[field.name], choice)) button.append(" ", element("span", "model", { class: "tag" }));
          button.addEventListener("click", () => choose(number, place));
          choices.append(button);
        });
        box.append(choices);
      } else {
        const text = element("textarea", null, { rows: field.kind === "number" ? 1 : 4, "aria-label": field.name });
        text.value = draft[`text ${field.name}`] ?? textOf(field, draft[field.name]);
        text.addEventListener("focus", () => { if (marked !== number) mark(number, true); });
        text.addEventListener("input", () => { draft[`text ${field.name}`] = text.value; });
        box.append(text);
      }
      at("answer").append(box);
    });
  };

  const show = () => {
    if (!form.rows.length) return;
    state.shown = Math.min(Math.max(0, state.shown), form.rows.length - 1);
    const before = state.answers[row().content];
    marked = 0;
    draft = { ...row().answer, ...(before ? before.values : {}) };
    at("note").value = before ? before.note : "";
    const sure = row().confidence === null ? "" : ` · confidence ${row().confidence.toFixed(2)}`;
    at("place").textContent =
      `${state.shown + 1} of ${form.rows.length} · row ${row().row_index}${row().key === null ? "" : ` · ${row().key}`}` +
      `${sure}${before ? " · reviewed" : ""}`;
    showColumns();
    showFields();
    showProgress();
  };

  const mark = (number, keepFocus = false) => {
    marked = (number + form.fields.length) % form.fields.length;
    at("answer").querySelectorAll("fieldset").forEach((box, place) => box.classList.toggle("marked", place === marked));
    if (!keepFocus) document.activeElement.blur();
  };

  const next = () => {
    // The next row without an answer, then those that were left for later.
    const count = form.rows.length;
    for (let step = 1; step <= count; step += 1) {
      const place = (state.shown + step) % count;
      if (!state.answers[form.rows[place].content]) {
        state.shown = place;
        return;
      }
    }
    say("Every row has an answer. Save them as a file.");
  };

  // Read what was typed. An error names the field and leaves the row where it is.
  const values = () => {
    const found = {};
    for (const field of form.fields) {
      const typed = draft[`text ${field.name}`];
      let value = draft[field.name];
      if (typed !== undefined && field.kind === "text") value = typed === "" && field.nullable ? null : typed;
      else if (typed !== undefined) {
        try {
          value = JSON.parse(typed);
        } catch {
          throw new Error(`${field.name}: ${field.kind === "number" ? "write a number" : "write JSON"}`);
        }
      }
      if (value === undefined || (value === null && !field.nullable)) throw new Error(`${field.name}: give a value`);
      found[field.name] = value;
    }
    return found;
  };

  const accept = () => {
    let given;
    try {
      given = values();
    } catch (error) {
      say(error.message);
      return;
    }
    say("");
    const { content } = row();
    state.order = [...state.order.filter((each) => each !== content), content];
    state.answers[content] = { values: given, note: at("note").value, reviewed_at: new Date().toISOString() };
    next();
    keep();
    document.activeElement.blur();
    show();
    window.scrollTo(0, 0);
  };

  const choose = (number, place) => {
    const field = form.fields[number];
    if (!field || field.kind !== "choice" || place >= field.choices.length) return;
    draft[field.name] = field.choices[place];
    if (form.fields.length === 1) {
      accept();
      return;
    }
    showFields();
    mark(Math.min(number + 1, form.fields.length - 1));
  };

  const undo = () => {
    const last = state.order.pop();
    if (last === undefined) return;
    delete state.answers[last];
    state.shown = form.rows.findIndex((each) => each.content === last);
    say("");
    keep();
    show();
  };

  const move = (step) => {
    state.shown = (state.shown + step + form.rows.length) % form.rows.length;
    keep();
    show();
  };

  const save = () => {
    if (!state.reviewer.trim()) {
      say("Write your name first: it is kept with your answers.");
      at("reviewer").focus();
      return;
    }
    const lines = form.rows
      .filter((each) => state.answers[each.content])
      .map((each) => {
        const { values: given, note, reviewed_at } = state.answers[each.content];
        const { content, custom_id, row_index, key, probability } = each;
        return JSON.stringify({
          job: form.job, content, custom_id, row_index, key, probability, round: form.round,
          values: given, reviewer: state.reviewer.trim(), reviewed_at, note: note || null,
        });
      });
    if (!lines.length) {
      say("There is no answer to save yet.");
      return;
    }
    const url = URL.createObjectURL(new Blob([`${lines.join("\n")}\n`], { type: "application/jsonl" }));
    const name = state.reviewer.trim().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "") || "person";
    const link = element("a", null, { href: url, download: `${form.file}-${name}.jsonl` });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
    state.saved = lines.length;
    keep();
    say(`Saved ${lines.length} of ${form.rows.length} rows. Send the file to whoever asked you.`);
    showProgress();
  };

  const edit = (target) => {
    if (!target) return;
    target.focus();
    target.setSelectionRange(target.value.length, target.value.length);
  };

  document.addEventListener("keydown", (event) => {
    const typing = ["INPUT", "TEXTAREA"].includes(event.target.tagName);
    if (event.key === "Escape" || (typing && event.target.id === "reviewer" && event.key === "Enter")) {
      document.activeElement.blur();
      event.preventDefault();
      return;
    }
    // A text takes all keys but this one; elsewhere keys with Ctrl or Alt are the browser's own.
    if (typing && !(event.key === "Enter" && event.ctrlKey)) return;
    if (!typing && (event.ctrlKey || event.altKey || event.metaKey)) return;
    // Enter on a button that has the focus presses it.
    if (event.key === "Enter" && event.target.tagName === "BUTTON") return;
    if (event.target.tagName === "SUMMARY") return;
    const actions = {
      Enter: accept, u: undo, U: undo, s: save, S: save, ArrowLeft: () => move(-1), ArrowRight: () => move(1),
      ArrowDown: () => mark(marked + 1), ArrowUp: () => mark(marked - 1), n: () => edit(at("note")), N: () => edit(at("note")),
      e: () => edit(at("answer").children[marked].querySelector("textarea")),
      E: () => edit(at("answer").children[marked].querySelector("textarea")),
    };
    const action = /^[1-9]$/.test(event.key) ? () => choose(marked, Number(event.key) - 1) : actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
  at("answer").addEventListener("submit", (event) => event.preventDefault());
  for (const [id, action] of Object.entries({ accept, undo, save, back: () => move(-1), skip: () => move(1) })) {
    at(id).addEventListener("click", () => { at(id).blur(); action(); });
  }
  at("reviewer").addEventListener("input", () => { state.reviewer = at("reviewer").value; keep(); });

  restore();
  at("reviewer").value = state.reviewer;
  show();
  document.documentElement.dataset.ready = "yes";
})();
