"use strict";
(async () => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const cells = [...document.querySelectorAll(".layers tbody tr")];
  const widest = Math.max(1, ...cells.map((row) => Number(row.dataset.width)));
  const picker = document.getElementById("picker");
  let models = [];

  const text = (id, value) => { const place = document.getElementById(id); if (place) place.textContent = value; };

  function drawLayers(layers) {
    cells.forEach((row, number) => {
      const size = layers[number], bar = row.querySelector(".bar.chosen");
      if (size === undefined) return;
      row.classList.toggle("skipped", size === null);
      row.classList.toggle("smaller", size !== null && (size[0] < Number(row.dataset.width) || size[1] !== row.dataset.kernel));
      bar.querySelector("i").style.width = size === null ? "0" : `${(100 * size[0]) / widest}%`;
      bar.querySelector("b").textContent = size === null ? "skipped" : String(size[0]);
      bar.querySelector("span.kernel").textContent = size === null ? "" : size[1];
    });
  }

  // Only what was measured: other sub-networks than the winners have no times.
  function drawTimes(times) {
    cells.forEach((row, number) => {
      const place = row.querySelectorAll(".time")[1], ms = times.layers[number] ?? null;
      if (place === undefined) return;
      place.querySelector("i").style.width = ms === null ? "0" : `${(100 * ms) / data.slowest}%`;
      place.querySelector(".size").textContent = ms === null ? "" : `${ms.toFixed(3)} ms`;
    });
    text("time-other", times.other);
    text("time-operators", times.operators);
    text("time-total", times.total);
  }

  function drawValues(values) {
    const list = document.getElementById("values");
    list.replaceChildren(...values.flatMap(([name, value]) => {
      const term = document.createElement("dt"), told = document.createElement("dd");
      term.textContent = name;
      told.textContent = value;
      return [term, told];
    }));
  }

  function select(key) {
    const member = data.members[key];
    if (member === undefined) return;
    if (picker.value !== key) picker.value = key;
    text("chosen-label", member.label);
    text("chosen-head", member.label);
    text("choice", member.choice);
    text("command", member.command);
    text("note", member.note);
    document.querySelector(".export").hidden = !member.command;
    drawValues(member.values);
    drawLayers(member.layers);
    drawTimes(member.times);
    mark(key);
  }

  function mark(key) {
    models.forEach((source) => {
      const at = source.data.key.indexOf(key), wanted = at < 0 ? [] : [at];
      if (String(source.selected.indices) !== String(wanted)) source.selected.indices = wanted;
    });
  }

  function listen(source) {
    source.selected.properties.indices.change.connect(() => {
      const [at] = source.selected.indices;
      if (at === undefined) queueMicrotask(() => mark(picker.value)); // a click beside the points
      else if (source.data.key[at] !== picker.value) select(source.data.key[at]);
    });
  }

  for (let number = 0; number < data.plots.length; number++) {
    await Bokeh.embed.embed_item(data.plots[number], `plot-${data.names[number]}`);
  }
  models = data.sources.map((name) => Bokeh.documents.map((one) => one.get_model_by_name(name)).find((one) => one)).filter((one) => one);
  models.forEach(listen);
  if (picker) {
    picker.addEventListener("change", () => select(picker.value));
    if (picker.value) select(picker.value);
  }
  function explore() {
    const drop = document.getElementById("drop"), cost = document.getElementById("cost"), { choices, label, unit, name, one, many, best } = data.explorer;
    const number = (value) => Number(value.toPrecision(4)).toString();
    // A browser adds steps to the least value, which is not exact: 0 comes as -3e-15.
    const at = (slider) => Math.round(slider.value / slider.step) * slider.step || 0;

    function told() {
      text("drop-told", `${number(at(drop))} ${at(drop) === 1 ? one : many}`);
      text("cost-told", `${number(at(cost))} ${unit}`);
    }

    // The slider that was moved last says what is wanted; the other one is a bound.
    function ship(cheapest) {
      told();
      const fitting = choices.filter((one) => one.drop <= at(drop) + 1e-9 && one.cost <= at(cost) + 1e-9);
      const [first, second] = cheapest ? ["cost", "drop"] : ["drop", "cost"];
      fitting.sort((one, other) => one[first] - other[first] || one[second] - other[second]);
      if (!fitting.length) return text("ship", "No evaluated sub-network meets both limits: raise one of them.");
      select(fitting[0].key);
      const what = cheapest ? `Lowest ${label} within this loss of ${name}` : `${best} within this limit of ${label}`;
      text("ship", `${what}: ${data.members[fitting[0].key].label}.`);
    }

    told();
    drop.addEventListener("input", () => ship(true));
    cost.addEventListener("input", () => ship(false));
  }

  async function copy() {
    const place = document.getElementById("command");
    getSelection().selectAllChildren(place); // what is selected can be copied by hand, too
    try {
      await navigator.clipboard.writeText(place.textContent);
    } catch {
      document.execCommand("copy");
    }
    text("copy", "Copied");
    setTimeout(() => text("copy", "Copy"), 1500);
  }

  if (data.explorer) explore();
  document.getElementById("copy")?.addEventListener("click", copy);
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
  document.documentElement.dataset.ready = "yes";
})();
