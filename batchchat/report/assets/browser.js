/* The row browser: an index of all rows to filter and sort by, and blocks of texts that are opened as they are needed. */

const browser = (() => {
  const { element } = page;
  const { variants, scores, count } = suite;
  const PAGE_ROWS = 25;
  const KEPT_LETTERS = 120e6;
  const KEPT_BLOCKS = 40;
  const MOST_COLUMNS = 6;
  const EXCERPT = 280;
  const byId = (id) => document.getElementById(id);

  let index = null;
  let alike = new Set();
  const state = {
    shown: variants.map((_, number) => number < MOST_COLUMNS),
    chip: null, sort: null, order: [], page: 0, open: null, run: 0,
  };

  // ---- blocks of rows

  const blocks = {
    packed: [...document.querySelectorAll('script.block')],
    texts: new Map(),
    rows: new Map(),
    letters: 0,

    /** A block's JSON. What was not asked for of late is let go of. */
    async text(number) {
      let text = this.texts.get(number);
      if (text === undefined) {
        text = await page.unpacked(this.packed[number].textContent);
        this.letters += text.length;
      } else {
        this.texts.delete(number);
      }
      this.texts.set(number, text);
      for (const [oldest, kept] of this.texts) {
        if (this.letters <= KEPT_LETTERS || oldest === number) break;
        this.texts.delete(oldest);
        this.letters -= kept.length;
      }
      return text;
    },

    async parsed(number) {
      let rows = this.rows.get(number);
      if (rows === undefined) rows = JSON.parse(await this.text(number));
      else this.rows.delete(number);
      this.rows.set(number, rows);
      if (this.rows.size > KEPT_BLOCKS) this.rows.delete(this.rows.keys().next().value);
      return rows;
    },

    /** The block that holds a row. */
    of(position) {
      let low = 0;
      let high = index.starts.length - 1;
      while (low < high) {
        const middle = (low + high + 1) >> 1;
        if (index.starts[middle] <= position) low = middle;
        else high = middle - 1;
      }
      return low;
    },

    async row(position) {
      const number = this.of(position);
      return (await this.parsed(number))[position - index.starts[number]];
    },
  };

  // ---- which rows

  function visible() {
    return variants.map((_, number) => number).filter((number) => state.shown[number]);
  }

  /** A variant's values by the chosen score, null where it has none for single rows. */
  function valuesOf(variant, score = suite.score()) {
    return score && score.column !== null && score.column !== undefined ? index.value[variant][score.column] : null;
  }

  function test(kind) {
    const chosen = visible();
    const columns = chosen.map((variant) => valuesOf(variant));
    const known = (row) => columns.map((values) => values?.[row] ?? null).filter((value) => value !== null);
    const tests = {
      all: () => true,
      answers: (row) => new Set(chosen.map((variant) => index.group[variant][row])).size > 1,
      scores: (row) => new Set(known(row)).size > 1,
      failed: (row) => chosen.some((variant) => index.state[variant][row] === 2),
      unscored: (row) => columns.some((values) => (values?.[row] ?? null) === null),
      wrong: (row) => {
        const values = known(row);
        return values.length > 0 && values.every((value) => value === 0);
      },
    };
    return tests[kind];
  }

  function chipTest(chip) {
    if (chip.kind === 'class') return classTest(chip);
    const { kind, first, second, score } = chip;
    if (kind === 'preferred') {
      const pair = index.pairs.find((one) => one.scorer === scores[score].name && [one.a, one.b].includes(first) && [one.a, one.b].includes(second));
      return (row) => Boolean(pair) && (pair.a === first ? pair.value[row] > 0 : pair.value[row] < 0);
    }
    const [a, b] = [valuesOf(first, scores[score]), valuesOf(second, scores[score])];
    const better = scores[score].higher === false ? (x, y) => x < y : (x, y) => x > y;
    if (kind === 'flip') return (row) => a[row] !== null && b[row] !== null && a[row] > 0.5 && b[row] < 0.5;
    return (row) => a[row] !== null && b[row] !== null && better(a[row], b[row]);
  }

  /** Rows with one expected label that were given a certain other one, or any outside of the classes, or none. */
  function classTest({ scorer, variant, expected, given, classes }) {
    const labels = index.labels[scorer];
    const codes = new Map(labels.names.map((name, code) => [name, code]));
    const known = new Set(classes.map((name) => codes.get(name)));
    const told = labels.given[variant];
    const matches = codes.has(given) && classes.includes(given) ? (code) => code === codes.get(given)
      : given === '(no answer)' ? (code) => code === null : (code) => code !== null && !known.has(code);
    return (row) => labels.expected[row] === codes.get(expected) && matches(told[row]);
  }

  function chipWords(chip) {
    if (chip.kind === 'class') return `${chip.expected} told as ${chip.given} by ${suite.numbered[chip.variant]}`;
    const [first, second] = [suite.numbered[chip.first], suite.numbered[chip.second]];
    const by = `by ${scores[chip.score].name}`;
    return {
      flip: `right in ${first}, wrong in ${second}, ${by}`,
      better: `better in ${first} than in ${second}, ${by}`,
      preferred: `${first} preferred to ${second}, ${by}`,
    }[chip.kind];
  }

  function keyOf(order) {
    const chosen = visible();
    const gather = (columns, fold) => (row) => {
      const values = columns.map((values) => values?.[row] ?? null).filter((value) => value !== null);
      return values.length ? fold(values) : null;
    };
    const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
    const most = (values) => Math.max(...values);
    const ofScore = chosen.map((variant) => valuesOf(variant));
    const of = (name) => chosen.map((variant) => index[name][variant]);
    switch (order) {
      case 'low': return [gather(ofScore, mean), 1];
      case 'high': return [gather(ofScore, mean), -1];
      case 'spread': return [gather(ofScore, (values) => most(values) - Math.min(...values)), -1];
      case 'slow': return [gather(of('latency_s'), most), -1];
      case 'dear': return [gather(of('cost'), most), -1];
      case 'long': return [gather(of('letters'), most), -1];
      default: return null;
    }
  }

  /** The rows that pass the filters, in the order asked for; those without a value for it come last. */
  function selection() {
    const passes = test(byId('show').value);
    const chip = state.chip ? chipTest(state.chip) : () => true;
    const rows = [];
    for (let row = 0; row < index.row_index.length; row += 1) if (passes(row) && chip(row)) rows.push(row);
    const by = state.sort ? [(row) => valuesOf(state.sort.variant)?.[row] ?? null, state.sort.down ? -1 : 1] : keyOf(byId('order').value);
    if (by) {
      const [key, direction] = by;
      const keys = new Map(rows.map((row) => [row, key(row)]));
      rows.sort((left, right) => {
        const [a, b] = [keys.get(left), keys.get(right)];
        if (a === null || b === null) return (a === null) - (b === null) || left - right;
        return direction * (a - b) || left - right;
      });
    }
    return rows;
  }

  // ---- search

  function texts(row) {
    // Lines that every row's prompt has would be found in every row.
    const own = (text) => text.split('\n').filter((one) => !alike.has(one)).join('\n');
    const found = row.m.flatMap((messages) => messages.map(([, text]) => own(text)));
    for (const samples of row.a) {
      for (const answer of samples) {
        if (!answer) continue;
        found.push(answer.t, answer.x, answer.r, ...(answer.e ?? []), ...(answer.c ?? []).flat());
        found.push(...answer.s.map(([, reason]) => reason));
      }
    }
    found.push(...Object.values(row.w ?? {}));
    found.push(...(row.v ?? []).map(([, , , reason]) => reason));
    return found;
  }

  /** The rows of a selection that hold a text, told block by block so that the page stays awake. */
  async function search(rows, wanted, run, progress) {
    const open = new Set(rows.map((row) => blocks.of(row)));
    const inside = new Set(rows);
    const found = new Set();
    const escaped = JSON.stringify(wanted).slice(1, -1);
    let done = 0;
    let told = performance.now();
    for (const number of open) {
      const start = index.starts[number];
      const end = index.starts[number + 1] ?? index.row_index.length;
      const raw = (await blocks.text(number)).toLowerCase();
      if (run !== state.run) return null;
      const hit = raw.includes(escaped);
      const parsed = hit ? JSON.parse(await blocks.text(number)) : null;
      for (let row = start; row < end; row += 1) {
        if (!inside.has(row)) continue;
        const named = String(index.key?.[row] ?? index.row_index[row]).toLowerCase().includes(wanted);
        if (named || (hit && texts(parsed[row - start]).some((text) => String(text ?? '').toLowerCase().includes(wanted)))) found.add(row);
      }
      done += 1;
      if (performance.now() - told > 80) {
        progress(done / open.size, found.size);
        await new Promise((resolve) => setTimeout(resolve));
        told = performance.now();
        if (run !== state.run) return null;
      }
    }
    return rows.filter((row) => found.has(row));
  }

  async function refresh() {
    const run = (state.run += 1);
    const wanted = byId('query').value.trim().toLowerCase();
    let rows = selection();
    if (wanted) {
      document.documentElement.dataset.rows = 'searching';
      const progress = (share, hits) => {
        byId('found').textContent = `Searching, ${Math.round(100 * share)}%: ${count(hits)} so far`;
      };
      rows = await search(rows, wanted, run, progress);
      if (rows === null) return;
    }
    state.order = rows;
    state.page = 0;
    state.open = null;
    await draw();
  }

  // ---- the table

  async function draw({ focus = null } = {}) {
    const run = state.run;
    const pages = Math.max(1, Math.ceil(state.order.length / PAGE_ROWS));
    state.page = Math.min(state.page, pages - 1);
    const shown = state.order.slice(state.page * PAGE_ROWS, (state.page + 1) * PAGE_ROWS);
    const rows = await Promise.all(shown.map((position) => blocks.row(position)));
    if (run !== state.run) return;
    const total = index.row_index.length;
    const all = state.order.length === total;
    byId('found').textContent = all ? `${count(total)} rows` : `${count(state.order.length)} of ${count(total)} rows`;
    byId('page').textContent = `Page ${count(state.page + 1)} of ${count(pages)}`;
    byId('previous').disabled = state.page === 0;
    byId('next').disabled = state.page >= pages - 1;
    drawHead();
    document.querySelector('#rows tbody').replaceChildren(...shown.flatMap((position, at) => {
      const line = rowLine(position, rows[at]);
      return state.open === position ? [line, detailLine(position, rows[at])] : [line];
    }));
    if (!shown.length) {
      const words = total ? 'No row passes the filters.' : 'There are no answers yet.';
      document.querySelector('#rows tbody').append(element('tr', {}, element('td', { class: 'quiet', colspan: columnCount() }, words)));
    }
    if (focus !== null) buttons()[Math.min(focus, shown.length - 1)]?.focus();
    document.documentElement.dataset.rows = 'shown';
  }

  function drawHead() {
    const sortable = suite.score() && suite.score().column !== null;
    const cells = visible().map((variant) => {
      const sorted = state.sort?.variant === variant;
      const direction = sorted ? (state.sort.down ? 'descending' : 'ascending') : 'none';
      const arrow = sorted ? (state.sort.down ? ' ↓' : ' ↑') : '';
      return element('th', { scope: 'col', 'aria-sort': sortable ? direction : null },
        sortable
          ? element('button', { type: 'button', class: 'sort data', title: `Order by ${suite.score().name} of ${variants[variant]}`, click: () => sortBy(variant) }, ...suite.named(variant), arrow)
          : element('span', {}, ...suite.named(variant)));
    });
    document.querySelector('#rows thead').replaceChildren(
      element('tr', {}, element('th', { scope: 'col', class: 'name' }, 'row'), element('th', { scope: 'col', class: 'prompt' }, 'asked'),
        expecting() === null ? null : element('th', { scope: 'col', class: 'wanted' }, 'expected'), ...cells));
  }

  function sortBy(variant) {
    const again = state.sort?.variant === variant;
    state.sort = again && state.sort.down ? null : { variant, down: again };
    refresh();
  }

  function nameOf(position) {
    const key = index.key?.[position];
    return key === null || key === undefined ? `row ${index.row_index[position]}` : key;
  }

  /** The number of the scorer whose expected values are shown: that of the chosen score, or else the first; or null. */
  function expecting() {
    const column = suite.score()?.column ?? null;
    return index.expecting.includes(column) ? column : index.expecting[0] ?? null;
  }

  function columnCount() {
    return visible().length + (expecting() === null ? 2 : 3);
  }

  function excerpt(text) {
    const line = text.replace(/\s+/gu, ' ').trim();
    return line.length > EXCERPT ? `${line.slice(0, EXCERPT)}…` : line;
  }

  /** The question itself: the last message of the first prompt that there is. */
  function question(row) {
    return row.m.length ? excerpt(row.m[0].at(-1)?.[1] ?? '') : '';
  }

  function rowLine(position, row) {
    const opened = state.open === position;
    const cells = visible().map((variant) => element('td', { 'data-label': suite.numbered[variant] }, ...answerCell(position, row, variant)));
    const wanted = expecting();
    if (wanted !== null) {
      cells.unshift(element('td', { 'data-label': 'expected' }, element('div', { class: 'clamp data' }, excerpt(row.w?.[wanted] ?? '–'))));
    }
    const button = element('button', {
      type: 'button', class: 'open data', 'aria-expanded': String(opened), 'aria-controls': opened ? 'detail' : null,
      'data-position': position, click: () => toggle(position),
    }, nameOf(position));
    return element('tr', { class: opened ? 'opened' : null },
      element('th', { scope: 'row' }, button), element('td', { class: 'prompt', 'data-label': 'asked' }, element('div', { class: 'clamp data quiet' }, question(row))), ...cells);
  }

  function answerCell(position, row, variant) {
    const samples = row.a[variant].filter(Boolean);
    if (!samples.length) return [element('span', { class: 'quiet' }, 'no answer yet')];
    const more = samples.length > 1 ? element('span', { class: 'quiet small' }, ` +${samples.length - 1}`) : null;
    return [
      scoreMark(valuesOf(variant)?.[position] ?? null),
      element('div', { class: `clamp data${samples[0].e ? ' failed' : ''}` }, excerpt(answerText(samples[0])), more),
    ];
  }

  function answerText(answer) {
    if (answer.e) return `failed: ${answer.e[0] ?? ''}`;
    if (answer.t) return answer.t;
    if (answer.c) return answer.c.map(([name, given]) => `${name}(${given})`).join('\n');
    return answer.x ?? '';
  }

  function scoreMark(value) {
    const score = suite.score();
    if (!score || score.column === null) return null;
    if (value === null) return element('span', { class: 'mark none', title: 'no score' }, '–');
    if (score.unit === 'yes/no' && (value === 0 || value === 1)) {
      return element('span', { class: value ? 'mark right' : 'mark wrong', title: value ? 'right' : 'wrong', role: 'img', 'aria-label': value ? 'right' : 'wrong' }, value ? '✓' : '✗');
    }
    return element('span', { class: 'mark number' }, written(value, score));
  }

  function written(value, { unit }) {
    if (unit === 'yes/no' || unit === 'share') return `${Number((100 * value).toFixed(1))}%`;
    if (unit === 'seconds') return value < 1 ? `${Math.round(1000 * value)} ms` : `${Number(value.toFixed(2))} s`;
    return Number(value.toPrecision(4)).toLocaleString('en', { maximumSignificantDigits: 4 });
  }

  // ---- one row

  function toggle(position) {
    state.open = state.open === position ? null : position;
    const at = state.order.slice(state.page * PAGE_ROWS).indexOf(position);
    return draw({ focus: at });
  }

  function detailLine(position, row) {
    const chosen = visible();
    const cell = element('td', { colspan: columnCount(), id: 'detail' },
      ...row.m.map((messages, number) => prompt(row, messages, number)),
      ...expectations(row), link(position),
      element('div', { class: 'cards' }, ...chosen.map((variant) => card(row, variant))),
      ...verdicts(row));
    return element('tr', { class: 'detail' }, cell);
  }

  function expectations(row) {
    return [...new Set(Object.values(row.w ?? {}))].map((label) => element('p', { class: 'expected' }, element('span', { class: 'quiet' }, 'expected '), element('span', { class: 'data' }, label)));
  }

  /** What judges said of two answers beside each other. */
  function verdicts(row) {
    const lines = (row.v ?? []).flatMap(([number, sample, value, reason]) => {
      const { scorer, a, b } = index.pairs[number];
      if (!state.shown[a] || !state.shown[b]) return [];
      const said = value === null ? ['no verdict on ', ...suite.named(a), ' and ', ...suite.named(b)]
        : value === 0 ? [...suite.named(a), ' and ', ...suite.named(b), ' alike']
          : [...suite.named(value > 0 ? a : b), ' preferred to ', ...suite.named(value > 0 ? b : a)];
      return [
        element('dt', { class: 'data' }, scorer + (index.samples > 1 ? `, answer ${sample + 1}` : '')),
        element('dd', {}, ...said, reason ? element('span', { class: 'data quiet' }, ` ${reason}`) : null),
      ];
    });
    return lines.length ? [element('dl', { class: 'pairs verdicts' }, ...lines)] : [];
  }

  function prompt(row, messages, number) {
    const users = suite.numbered.filter((_, variant) => row.u[variant] === number && state.shown[variant]);
    if (!users.length) return element('span', { hidden: true });
    const whose = row.m.length > 1 ? ` of ${users.join(', ')}` : '';
    return element('details', { class: 'messages', open: number === 0 }, element('summary', { class: 'data' }, `Messages${whose}`),
      ...messages.flatMap(([role, text]) => [element('h3', { class: 'data' }, role), element('pre', { class: 'text data' }, text)]));
  }

  function card(row, variant) {
    const reference = byId('reference').value === '' ? null : Number(byId('reference').value);
    const samples = row.a[variant];
    const several = samples.length > 1;
    return element('section', { class: 'variant', 'aria-label': variants[variant] },
      element('h3', {}, ...suite.named(variant), ...(variant === reference ? [' ', element('span', { class: 'tag' }, 'reference')] : [])),
      ...samples.map((answer, sample) => {
        const other = reference === null || reference === variant ? null : row.a[reference][sample] ?? row.a[reference][0];
        return element('div', { class: 'sample' }, several ? element('p', { class: 'quiet small' }, `answer ${sample + 1}`) : null, ...told(answer, other));
      }));
  }

  function told(answer, other) {
    if (!answer) return [element('p', { class: 'quiet' }, 'no answer yet')];
    const parts = [];
    if (answer.e) {
      const status = answer.e[2] ? `, HTTP ${answer.e[2]}` : '';
      parts.push(element('p', { class: 'failed data' }, `failed: ${answer.e[0] ?? ''}${status}`), element('p', { class: 'data' }, answer.e[1]));
    }
    if (answer.t !== undefined && answer.t !== '') {
      const plain = other?.t === undefined || other.e;
      parts.push(element('pre', { class: 'text data' }, ...(plain ? [answer.t] : difference.marked(answer.t, other.t))));
    } else if (!answer.e && !answer.c && !answer.x) {
      parts.push(element('p', { class: 'quiet' }, 'an empty answer'));
    }
    if (answer.x) parts.push(element('p', { class: 'data' }, element('span', { class: 'quiet' }, 'refusal: '), answer.x));
    for (const [name, given] of answer.c ?? []) {
      parts.push(element('p', { class: 'quiet small' }, 'calls ', element('span', { class: 'data' }, name ?? '')), element('pre', { class: 'text data' }, given));
    }
    if (answer.r) parts.push(element('details', {}, element('summary', {}, 'Reasoning'), element('pre', { class: 'text data' }, answer.r)));
    parts.push(scoreList(answer), element('p', { class: 'quiet small' }, facts(answer)));
    if (answer.n) parts.push(element('p', { class: 'quiet small data' }, `messages: ${answer.n}`));
    return parts;
  }

  function scoreList(answer) {
    const lines = answer.s.flatMap(([value, reason], column) => {
      const score = scores.find((one) => one.column === column) ?? { name: index.scorers[column], unit: '' };
      if (value === null && !reason) return [];
      return [
        element('dt', { class: 'data' }, score.name),
        element('dd', {}, element('span', { class: score.unit === 'yes/no' ? (value ? 'right' : 'wrong') : null }, value === null ? 'no score' : score.unit === 'yes/no' ? (value ? 'right' : 'wrong') : written(value, score)),
          reason ? element('span', { class: 'data quiet' }, ` ${reason}`) : null),
      ];
    });
    return element('dl', { class: 'pairs scores' }, ...lines);
  }

  function facts(answer) {
    const parts = [];
    if (answer.f) parts.push(`ended by ${answer.f}`);
    if (answer.l !== undefined) parts.push(answer.l < 1 ? `${Math.round(1000 * answer.l)} ms` : `${answer.l.toFixed(2)} s`);
    if (answer.p !== undefined || answer.o !== undefined) parts.push(`${count(answer.p ?? 0)} tokens in, ${count(answer.o ?? 0)} out`);
    if (answer.k !== undefined) parts.push(`cost ${Number(answer.k.toPrecision(3))}`);
    return parts.join(' · ');
  }

  // ---- links and downloads

  /** A row's address: what comes behind the page's own. */
  function hashOf(position) {
    return `#row=${encodeURIComponent(nameOf(position))}`;
  }

  function link(position) {
    return element('p', { class: 'small screen' }, element('a', { href: hashOf(position) }, 'Link to this row'));
  }

  /** Open the row that the address names. Filters that would hide it are taken away. */
  async function follow() {
    if (!location.hash.startsWith('#row=')) return;
    let wanted = location.hash.slice('#row='.length);
    try {
      wanted = decodeURIComponent(wanted);
    } catch {
      // What is no code is meant as it stands.
    }
    const position = index.row_index.findIndex((_, at) => nameOf(at) === wanted);
    if (position < 0) {
      byId('found').textContent = `There is no row ${wanted} in this page.`;
      return;
    }
    if (!state.order.includes(position)) {
      byId('query').value = '';
      byId('show').value = 'all';
      state.chip = null;
      drawChips();
      await refresh();
    }
    state.page = Math.floor(state.order.indexOf(position) / PAGE_ROWS);
    state.open = position;
    await draw();
    document.querySelector('#rows tr.opened')?.scrollIntoView({ block: 'start' });
  }

  function csvCell(value) {
    const text = String(value ?? '');
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }

  /** The rows that the filters leave, as CSV: what was asked and expected, then each variant's answers and scores. */
  async function csv() {
    const chosen = visible();
    const told = scores.filter((score) => score.column !== null);
    const wanted = expecting();
    const head = ['row_index', 'key', 'asked', ...(wanted === null ? [] : ['expected']), ...(index.samples > 1 ? ['sample'] : []),
      ...chosen.flatMap((variant) => [`${variants[variant]}: answer`, ...told.flatMap((score) => [`${variants[variant]}: ${score.name}`, `${variants[variant]}: ${score.name} reason`])])];
    const lines = [head];
    for (const position of state.order) {
      const row = await blocks.row(position);
      const asked = row.m.length ? row.m[0].at(-1)?.[1] ?? '' : '';
      for (let sample = 0; sample < Math.max(1, ...chosen.map((variant) => row.a[variant].length)); sample += 1) {
        lines.push([index.row_index[position], index.key?.[position], asked, ...(wanted === null ? [] : [row.w?.[wanted]]), ...(index.samples > 1 ? [sample] : []),
          ...chosen.flatMap((variant) => {
            const answer = row.a[variant][sample];
            return [answer ? answerText(answer) : null, ...told.flatMap((score) => [answer?.s[score.column]?.[0], answer?.s[score.column]?.[1]])];
          })]);
      }
    }
    return `${lines.map((line) => line.map(csvCell).join(',')).join('\r\n')}\r\n`;
  }

  async function download() {
    const button = byId('download');
    button.disabled = true;
    const file = new Blob([await csv()], { type: 'text/csv' });
    const address = URL.createObjectURL(file);
    const anchor = element('a', { href: address, download: 'answers.csv' });
    document.body.append(anchor);
    anchor.click();
    anchor.remove();
    setTimeout(() => URL.revokeObjectURL(address), 60000);
    button.disabled = false;
  }

  // ---- filters, keys

  function buttons() {
    return [...document.querySelectorAll('#rows button.open')];
  }

  function turn(by, focus = null) {
    const pages = Math.ceil(state.order.length / PAGE_ROWS);
    const next = state.page + by;
    if (next < 0 || next >= pages) return Promise.resolve();
    state.page = next;
    state.open = null;
    return draw({ focus });
  }

  function onKey(event) {
    const typing = event.target.closest('input, select, textarea, [contenteditable]');
    if (event.key === '/' && !typing) {
      event.preventDefault();
      byId('query').focus();
      return;
    }
    if (typing || event.altKey || event.ctrlKey || event.metaKey || !event.target.closest('#rows')) return;
    const all = buttons();
    const at = all.indexOf(document.activeElement);
    const moves = {
      ArrowDown: () => (at + 1 < all.length ? all[at + 1].focus() : turn(1, 0)),
      ArrowUp: () => (at > 0 ? all[at - 1].focus() : at === 0 && state.page > 0 ? turn(-1, PAGE_ROWS) : null),
      ArrowRight: () => turn(1, 0),
      ArrowLeft: () => turn(-1, 0),
      Escape: () => (state.open === null ? null : toggle(state.open)),
    };
    if (!moves[event.key]) return;
    event.preventDefault();
    moves[event.key]();
  }

  /** Show only the rows behind a number: those that one variant gets right and another one does not, those of a class. */
  function narrow(chip) {
    state.chip = chip;
    drawChips();
    refresh();
    byId('answers').scrollIntoView();
  }

  function drawChips() {
    const place = byId('chips');
    place.replaceChildren();
    if (!state.chip) return;
    place.append(element('span', { class: 'chip' }, element('span', { class: 'data' }, chipWords(state.chip)),
      element('button', { type: 'button', 'aria-label': 'Remove this filter', click: () => { state.chip = null; drawChips(); refresh(); } }, '×')));
  }

  function drawColumns() {
    const place = document.querySelector('#columns fieldset');
    byId('columns').hidden = variants.length < 2;
    for (const number of variants.keys()) {
      const box = element('input', { type: 'checkbox', checked: state.shown[number], change: () => {
        if (!box.checked && visible().length === 1) {
          box.checked = true;
          return;
        }
        state.shown[number] = box.checked;
        refresh();
      } });
      place.append(element('label', {}, box, element('span', {}, ...suite.named(number))));
    }
  }

  async function start() {
    index = JSON.parse(await page.unpacked(byId('index').textContent));
    alike = new Set(index.alike);
    const reference = byId('reference');
    suite.options(reference, ['nothing', ...suite.numbered], ['', ...variants.map((_, number) => String(number))]);
    reference.value = variants.length > 1 ? '0' : '';
    drawColumns();
    let timer = null;
    byId('query').addEventListener('input', () => {
      clearTimeout(timer);
      timer = setTimeout(refresh, 150);
    });
    byId('filters').addEventListener('submit', (event) => event.preventDefault());
    byId('show').addEventListener('change', refresh);
    byId('order').addEventListener('change', () => { state.sort = null; refresh(); });
    reference.addEventListener('change', () => draw());
    byId('previous').addEventListener('click', () => turn(-1));
    byId('next').addEventListener('click', () => turn(1));
    document.addEventListener('keydown', onKey);
    byId('download').addEventListener('click', download);
    suite.onScore(refresh);
    await refresh();
    window.addEventListener('hashchange', follow);
    await follow();
  }

  return { narrow, start };
})();

suite.start();
browser.start();
