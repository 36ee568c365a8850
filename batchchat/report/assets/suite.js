/* What is told about all rows: the chosen score, cost against it, pairs of variants, classes. */

const suite = (() => {
  const data = page.embedded('suite');
  const { variants, scores } = data;
  const numbered = variants.map((name, number) => `${number + 1} ${name}`);
  const listeners = [];
  const state = { score: Math.max(0, scores.findIndex((score) => score.figure && score.column !== null)) };

  const byId = (id) => document.getElementById(id);
  /** A variant's number and name. */
  const named = (variant) => [page.element('span', { class: 'badge' }, String(variant + 1)), ' ', page.element('span', { class: 'data' }, variants[variant])];
  const count = (number) => number.toLocaleString('en');

  function score() {
    return scores[state.score];
  }

  function onScore(listener) {
    listeners.push(listener);
  }

  function choose(index) {
    state.score = index;
    byId('score').value = String(index);
    for (const name of document.querySelectorAll('.score-name')) name.textContent = score()?.name ?? 'no score';
    for (const listener of listeners) listener();
  }

  function options(select, names, values = names.map((_, index) => String(index))) {
    select.replaceChildren(...names.map((name, index) => page.element('option', { value: values[index] }, name)));
  }

  // ---- cost against quality

  function drawQuality() {
    const plot = byId('quality-plot');
    const name = score()?.figure;
    plot.hidden = !name;
    byId('quality-none').hidden = Boolean(name);
    if (name) charts.show(plot, name);
  }

  // ---- pairs of variants

  /** The best variant by the chosen score; the first one where no direction is better. */
  function leader() {
    const best = score()?.best;
    return best === null || best === undefined ? 0 : best;
  }

  /** A comparison the other way round, so that the baseline always stands first. */
  function turned(one) {
    const negative = (text) => (text.startsWith('+') ? `-${text.slice(1)}` : text.startsWith('-') ? `+${text.slice(1)}` : text);
    const ends = one.interval.split(' to ');
    return {
      ...one, a: one.b, b: one.a, difference: negative(one.difference),
      interval: ends.length === 2 ? `${negative(ends[1])} to ${negative(ends[0])}` : one.interval,
      wins_a: one.wins_b, wins_b: one.wins_a, flips_to_a: one.flips_to_b, flips_to_b: one.flips_to_a,
    };
  }

  function drawPairs() {
    const body = document.querySelector('#pairs tbody');
    if (!body) return;
    const all = data.differences.filter((one) => one.scorer === score()?.name);
    byId('pairs-choice').hidden = variants.length < 3;
    const chosen = byId('baseline').value;
    const baseline = chosen === 'leader' ? leader() : Number(chosen);
    const shown = (chosen === 'all' ? all : all.filter((one) => one.a === baseline || one.b === baseline))
      .map((one) => (chosen !== 'all' && one.b === baseline ? turned(one) : one));
    body.replaceChildren(...shown.map(pairLine));
    const tests = [...new Set(shown.map((one) => one.test).filter(Boolean))];
    byId('pairs-note').textContent = shown.length
      ? `Differences are the first variant less the second. Intervals are those of one pair by itself, p is adjusted for all pairs of the score.${tests.length ? ` Test: ${tests.join(', ').replaceAll('_', ' ')}.` : ''}`
      : 'No pair of variants is compared by this score.';
  }

  function pairLine(one) {
    const { element } = page;
    const direction = score().higher;
    const filter = (kind, first, second) => ({ kind, first, second, score: state.score });
    const flips = one.flips_to_a !== null;
    const [inA, inB] = flips ? [one.flips_to_a, one.flips_to_b] : [one.wins_a, one.wins_b];
    const better = (number, first, second) => {
      if (number === null) return '–';
      const text = count(number);
      const single = score().column !== null && (flips || direction !== null);
      const there = number > 0 && (single || score().pairwise);
      if (!there) return text;
      const label = `Show the rows that are ${flips ? 'right' : 'better'} in ${variants[first]} and not in ${variants[second]}`;
      return element('button', {
        type: 'button', class: 'link', 'aria-label': `${text}. ${label}`, title: label,
        click: () => browser.narrow(filter(score().pairwise ? 'preferred' : flips ? 'flip' : 'better', first, second)),
      }, text);
    };
    return element('tr', {},
      element('th', { scope: 'row' }, ...named(one.a), element('span', { class: 'quiet' }, ' less '), ...named(one.b)),
      element('td', { class: 'number' }, one.difference),
      element('td', { class: 'quiet' }, one.interval),
      element('td', { class: 'number' }, one.p),
      element('td', {}, better(inA, one.a, one.b), element('span', { class: 'quiet' }, ' to '), better(inB, one.b, one.a),
        one.ties === null ? null : element('span', { class: 'quiet' }, `, ${count(one.ties)} alike`)),
      element('td', { class: one.better ? 'data settled' : 'data quiet' }, one.verdict));
  }

  // ---- classes

  function drawMatrix() {
    const place = byId('matrix');
    if (!place) return;
    const choice = byId('matrix-choice');
    const matrix = data.matrices[Number(choice.value || 0)];
    const labelled = data.labelled.find((name) => name.startsWith(`${matrix.scorer}.`));
    place.replaceChildren(matrixTable(matrix, labelled), classTable(matrix));
  }

  function matrixTable({ variant, classes, given, table, left_out: leftOut }, labelled) {
    const { element } = page;
    const used = given.map((_, column) => table.some((line) => line[column] > 0) || column < classes.length);
    const columns = given.map((_, column) => column).filter((column) => used[column]);
    const most = Math.max(1, ...table.map((line) => Math.max(...line)));
    const inside = (number, expected, told) => {
      const words = `${count(number)} that should be ${expected} were told as ${told}`;
      if (!labelled) return element('span', { title: words }, count(number));
      const chip = { kind: 'class', scorer: labelled, variant, expected, given: told, classes: classes.map((one) => one.label) };
      return element('button', { type: 'button', class: 'plain', title: words, 'aria-label': `${words}. Show them`, click: () => browser.narrow(chip) }, count(number));
    };
    const lines = table.map((line, row) => element('tr', {},
      element('th', { scope: 'row', class: 'data' }, classes[row].label),
      ...columns.map((column) => {
        const number = line[column];
        const right = given[column] === classes[row].label;
        const strength = number ? 12 + Math.round(78 * Math.sqrt(number / most)) : 0;
        const tone = right ? 'good' : 'bad';
        return element('td', {
          class: `cell ${strength > 55 ? 'strong' : ''}`,
          style: number ? `background: color-mix(in oklab, var(--${tone}) ${strength}%, var(--card))` : null,
        }, number ? inside(number, classes[row].label, given[column]) : '·');
      })));
    const head = element('tr', {}, element('td', { class: 'corner quiet' }, 'expected ↓ given →'),
      ...columns.map((column) => element('th', { scope: 'col', class: 'data' }, element('span', {}, given[column]))));
    return element('div', {},
      element('table', { class: 'matrix' }, element('caption', {}, 'Confusion matrix'), element('thead', {}, head), element('tbody', {}, ...lines)),
      leftOut ? element('p', { class: 'quiet small' }, `${count(leftOut)} rarer classes are left out.`) : null);
  }

  function classTable({ classes }) {
    const { element } = page;
    const share = (value) => (value === null ? '–' : `${(100 * value).toFixed(1)}%`);
    return element('details', {}, element('summary', {}, 'Precision and recall of each class'),
      element('table', { class: 'lines' },
        element('thead', {}, element('tr', {}, ...['class', 'precision', 'recall', 'F1', 'rows'].map((name, index) => element('th', { scope: 'col', class: index ? 'number' : null }, name)))),
        element('tbody', {}, ...classes.map((one) => element('tr', {},
          element('th', { scope: 'row', class: 'data' }, one.label),
          ...[one.precision, one.recall, one.f1].map((value) => element('td', { class: 'number' }, share(value))),
          element('td', { class: 'number' }, count(one.support)))))));
  }

  function start() {
    if (!byId('score')) return;
    options(byId('score'), scores.map((one) => one.name));
    byId('score').addEventListener('change', (event) => choose(Number(event.target.value)));
    const baseline = byId('baseline');
    if (baseline) {
      options(baseline, ['the leader', ...numbered, 'each other'], ['leader', ...numbered.map((_, number) => String(number)), 'all']);
      baseline.addEventListener('change', drawPairs);
    }
    const matrix = byId('matrix-choice');
    if (matrix) {
      const several = new Set(data.matrices.map((one) => one.scorer)).size > 1;
      options(matrix, data.matrices.map((one) => numbered[one.variant] + (several ? `, ${one.scorer}` : '')));
      matrix.addEventListener('change', drawMatrix);
      drawMatrix();
    }
    onScore(drawQuality);
    onScore(drawPairs);
    choose(state.score);
  }

  return { data, variants, numbered, named, scores, score, onScore, options, count, start };
})();
