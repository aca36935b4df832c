// Rollouts of a step: groups with their siblings side by side, or single completions in order.
const SORTS = {
  order: null, reward: c => c.failed ? null : c.reward, length: c => c.length, advantage: c => c.advantage,
};

function matches(state, group, completion) {
  const words = state.search.toLowerCase();
  const texts = [group.id, group.question, group.gold, completion.text, completion.extracted, ...group.files];
  const low = parseFloat(state.low), high = parseFloat(state.high);
  return (!state.kind || group.kind === state.kind)
    && (Number.isNaN(low) || (!completion.failed && completion.reward >= low))
    && (Number.isNaN(high) || (!completion.failed && completion.reward <= high))
    && (!state.truncated || completion.truncated)
    && (!state.failed || completion.failed)
    && (!words || texts.some(text => text && text.toLowerCase().includes(words)));
}

function sorted(items, state, key) {
  const of = SORTS[state.sort];
  if (!of) return items;
  const missing = state.down ? -Infinity : Infinity;
  const value = item => { const found = of(key(item)); return found == null ? missing : found; };
  const sign = state.down ? -1 : 1;
  return [...items].sort((a, b) => value(a) === value(b) ? 0 : sign * (value(a) < value(b) ? -1 : 1));
}

// Groups with the completions that the filters let through; a group comes where its best one does.
function chosen(run, state) {
  const step = run.rollouts[state.step];
  const groups = step.groups.map(group => ({
    group, hits: sorted(group.completions.filter(c => matches(state, group, c)), state, c => c),
  })).filter(({ hits }) => hits.length);
  return sorted(groups, state, ({ hits }) => hits[0]);
}

function card(run, state, group, completion, hit, pick) {
  const paid = completion.failed ? "failed" : completion.reward > 0 ? "paid" : "unpaid";
  const advantage = completion.advantage == null ? "" : `A ${number(completion.advantage, 3)}`;
  return el("button", {
    class: `card ${paid}${hit ? "" : " dim"}${state.picked === completion ? " picked" : ""}`,
    onclick: () => pick(group, completion),
  }, el("span", { class: "numbers" }, `${rewardText(completion)}  ${advantage}  ${completion.length} tok`,
    completion.truncated ? " ✂" : ""), el("span", { class: "text" }, completion.text));
}

function groupView(run, state, { group, hits }, pick) {
  const ranked = sorted(group.completions, state, c => c);
  return el("div", { class: `group${group.flat ? " flat" : ""}` },
    el("div", { class: "head" }, el("b", {}, group.kind), ` ${group.id}`,
      group.flat ? el("span", { class: "badge" }, "no spread: teaches nothing") : null,
      el("div", { class: "asked" }, group.question), el("div", { class: "note" }, "gold ", group.gold)),
    el("div", { class: "siblings" }, ranked.map(c => card(run, state, group, c, hits.includes(c), pick))));
}

function rolloutControls(run, state, redraw) {
  const set = name => value => { state[name] = value; redraw(); };
  const kinds = [...new Set(run.rollouts.flatMap(step => step.groups.map(group => group.kind)))].sort();
  const slider = el("input", {
    type: "range", id: "step", min: 0, max: run.rollouts.length - 1, value: state.step, "aria-label": "step",
    oninput: () => { state.step = Number(slider.value); state.picked = null; redraw(); },
  });
  return el("div", { class: "controls" },
    runChoice(state, redraw), el("label", {}, "step ", slider, " ", el("output", { id: "stepname" })),
    choice("verifier", [["", "all"], ...kinds.map(kind => [kind, kind])], state.kind, set("kind")),
    field("reward from", "number", state.low, set("low"), { step: 0.1 }),
    field("to", "number", state.high, set("high"), { step: 0.1 }),
    tick("truncated", state.truncated, set("truncated")), tick("failed", state.failed, set("failed")),
    field("search", "search", state.search, set("search")),
    choice("sort", Object.keys(SORTS).map(name => [name, name]), state.sort, set("sort")),
    tick("highest first", state.down, set("down")), tick("groups", state.grouped, set("grouped")),
    colourChoice(state, redraw));
}

const colourChoice = (state, redraw) => choice("colour",
  Object.entries(MODES).map(([key, mode]) => [key, mode.label]), state.colour,
  value => { state.colour = value; redraw(); });

const runChoice = (state, redraw) => DATA.runs.length < 2 ? null : choice("run",
  DATA.runs.map((run, r) => [r, run.label]), state.run,
  value => Object.assign(state, { run: Number(value), step: 0, picked: null, record: null }) && redraw(true));

function rolloutsView(state, redraw) {
  const run = DATA.runs[state.run];
  if (!run.rollouts.length) {
    return el("section", {}, runChoice(state, redraw), el("p", {}, "no rollouts were recorded"));
  }
  state.step = Math.max(0, Math.min(state.step, run.rollouts.length - 1));
  const list = el("div", { id: "list" }), detail = el("div", { id: "detail" });
  const pick = (group, completion) => { Object.assign(state, { picked: completion, of: group }); update(); };
  function update(whole) {
    if (whole) return redraw();
    const step = run.rollouts[state.step], found = chosen(run, state);
    const hits = found.flatMap(({ group, hits }) => hits.map(completion => ({ group, completion })));
    document.getElementById("stepname").textContent =
      `${step.step} (${state.step + 1} of ${run.rollouts.length} on the page, ${run.steps} recorded)`;
    const count = `${hits.length} completions; ${step.groups.length} of the step's ${step.total} groups are on the page`;
    list.replaceChildren(el("p", { class: "note", id: "count" }, count), ...(state.grouped
      ? found.map(entry => groupView(run, state, entry, pick))
      : sorted(hits, state, ({ completion }) => completion).map(({ group, completion }) =>
        card(run, state, group, completion, true, pick))));
    if (!state.picked && hits.length) Object.assign(state, { picked: hits[0].completion, of: hits[0].group });
    detail.replaceChildren(...(state.picked ? [sample(run, state.of, state.picked, state.colour)] : []));
    remember();
  }
  state.picked = null;
  const view = el("section", { id: "rollouts" }, rolloutControls(run, state, update),
    el("div", { class: "panes" }, list, detail));
  queueMicrotask(update);
  return view;
}
