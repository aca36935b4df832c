// Tabs, held-out answers before and after, settings; and the live page's look for news.
const STATE = {
  tab: "overview", run: 0, step: 0, kind: "", low: "", high: "", truncated: false, failed: false, search: "",
  sort: "order", down: true, grouped: true, colour: "sampler", picked: null, of: null, record: null,
  flips: "all", differing: DATA.runs.length > 1,
};
const KEPT = ["tab", "run", "step", "kind", "low", "high", "truncated", "failed", "search", "sort", "down",
  "grouped", "colour", "flips", "differing"];

function remember() {
  const kept = Object.fromEntries(KEPT.map(name => [name, STATE[name]]));
  history.replaceState(null, "", `#${encodeURIComponent(JSON.stringify(kept))}`);
}

function recall() {
  try {
    const kept = JSON.parse(decodeURIComponent(location.hash.slice(1)));
    for (const name of KEPT) if (typeof kept[name] === typeof STATE[name]) STATE[name] = kept[name];
  } catch { /* no state in the address, or that of another page */ }
  if (!DATA.runs[STATE.run]) STATE.run = 0;
  if (!(STATE.colour in MODES)) STATE.colour = "sampler";
  if (!(STATE.sort in SORTS)) STATE.sort = "order";
  if (!(STATE.tab in TABS)) STATE.tab = "overview";
}

const meanRaw = group => {
  const sound = group.completions.filter(c => !c.failed).map(c => c.parts.raw ?? c.reward);
  return sound.length ? sound.reduce((a, b) => a + b, 0) / sound.length : null;
};

function summaryTable(run) {
  const sides = ["constant", "before", "after"].filter(side => run.summary[side]);
  const names = Object.keys(run.summary.after || run.summary.before || {}).sort();
  const value = (side, name) => run.summary[side][side === "constant" ? name.replace("heldout/", "") : name];
  return el("table", {}, el("tr", {}, el("th", {}, run.label), sides.map(side => el("th", {}, side))),
    names.map(name => el("tr", {}, el("td", {}, name.replace("heldout/", "")),
      sides.map(side => el("td", {}, number(value(side, name)))))));
}

// Records with their answers of both sides, as far as both are on the page.
function pairs(run) {
  const [before, after] = run.answers;
  const later = new Map((after ? after.groups : []).map(group => [group.group, group]));
  const turned = new Map(run.flips.map(flip => [flip.group, flip.after > flip.before ? "up" : "down"]));
  return before ? before.groups.map(group => ({
    before: group, after: later.get(group.group), turn: turned.get(group.group) || "",
  })) : [];
}

const TURNS = { all: "all records", up: "wrong to right", down: "right to wrong" };

function heldoutView(state, redraw) {
  const run = DATA.runs[state.run], every = pairs(run);
  const count = turn => run.flips.filter(flip => (flip.after > flip.before ? "up" : "down") === turn).length;
  const shown = every.filter(pair => state.flips === "all" || pair.turn === state.flips);
  const picked = shown.find(pair => pair.before.group === state.record) || shown[0];
  const buttons = shown.map(pair => el("button", {
    class: `record ${pair.turn}${pair === picked ? " picked" : ""}`,
    onclick: () => { state.record = pair.before.group; redraw(); },
  }, `${pair.before.kind} ${pair.before.id}  `, number(meanRaw(pair.before), 3),
  pair.after ? ` → ${number(meanRaw(pair.after), 3)}` : ""));
  const options = Object.entries(TURNS).map(([key, text]) => [key, key === "all" ? text : `${text} (${count(key)})`]);
  const side = (group, n) => group && el("div", {}, el("h3", {}, `after ${run.answers[n].step} steps`),
    group.completions.map(completion => sample(run, group, completion, state.colour)));
  const recorded = run.answers.length ? run.answers[0].total : 0;
  return el("section", { id: "heldout" },
    el("div", { class: "controls" }, runChoice(state, redraw),
      choice("flips", options, state.flips, value => { state.flips = value; redraw(); }),
      colourChoice(state, redraw)),
    el("div", { class: "tables" }, DATA.runs.map(summaryTable)),
    el("p", { class: "note" }, `right is a mean unshaped reward of ${run.right} or more; `
      + `${every.length} of ${recorded} records are on the page, those that flipped first`),
    el("div", { class: "panes" }, el("div", { id: "records" }, buttons),
      el("div", { class: "pair" }, picked && [side(picked.before, 0), side(picked.after, 1)])));
}

function settingsView(state, redraw) {
  const names = [...new Set(DATA.runs.flatMap(run => Object.keys(run.settings)))].sort();
  const differs = name => new Set(DATA.runs.map(run => run.settings[name])).size > 1;
  const rows = names.filter(name => !state.differing || differs(name)).map(name =>
    el("tr", { class: differs(name) ? "differs" : "" }, el("th", {}, name),
      DATA.runs.map(run => el("td", {}, run.settings[name] ?? "–"))));
  return el("section", { id: "settings" },
    DATA.runs.length > 1 && tick("only those that differ", state.differing, value => {
      state.differing = value;
      redraw();
    }),
    el("table", {}, el("tr", {}, el("th", {}), DATA.runs.map(run => el("th", {}, run.label))), rows),
    rows.length ? null : el("p", {}, "all settings are the same"));
}

const TABS = {
  overview: ["overview", overview], rollouts: ["rollouts", rolloutsView],
  heldout: ["held-out", heldoutView], settings: ["settings", settingsView],
};

function draw() {
  remember();
  const bar = el("nav", {}, el("h1", {}, DATA.runs.map(run => run.label).join(" · ")),
    Object.entries(TABS).map(([key, [label]]) => el("button", {
      id: `tab-${key}`, class: STATE.tab === key ? "picked" : "",
      onclick: () => { STATE.tab = key; draw(); },
    }, label)), el("button", { id: "news", hidden: true, onclick: () => location.reload() }, "there is more: reload"));
  document.getElementById("page").replaceChildren(bar, TABS[STATE.tab][1](STATE, draw), TIP);
  TIP.hidden = true;
}

async function watch(known) {
  const answer = await fetch("/state").then(reply => reply.text()).catch(() => known);
  const first = known === undefined ? answer : known;
  const news = document.getElementById("news");
  if (news && answer !== first) news.hidden = false;
  setTimeout(watch, 3000, first);
}

// Runs of the same name, as of two sweeps, are told apart by their place.
DATA.runs.forEach((run, r) => {
  const same = DATA.runs.filter(other => other.name === run.name).length > 1;
  run.label = same ? `${run.name} (${r + 1})` : run.name;
});
recall();
draw();
if (DATA.live) watch();
