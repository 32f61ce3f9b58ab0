//! A good choice, fast: forms grow from the leaves.
//!
//! Each class holds the cheapest set of forms found so far that makes it, leaves
//! included. A form's set is its own and the union of those of what it reads, so
//! what two share counts once. Sets only ever get cheaper; a form whose set would
//! contain its own class is no candidate, which keeps choices free of cycles.

use std::collections::{BTreeMap, VecDeque};

use super::reduce::Reduced;

/// The set of forms that makes a class.
#[derive(Clone, Debug)]
struct Made {
    cost: f64,
    /// Form of each class in the set.
    forms: BTreeMap<usize, usize>,
}

/// A choice; `None` if a root cannot be made.
pub(super) fn greedy(problem: &Reduced) -> Option<Vec<Option<usize>>> {
    greedy_by(problem, |c, f| problem.classes[c][f].cost)
}

/// The same where forms cost something else.
pub(super) fn greedy_by(
    problem: &Reduced,
    cost: impl Fn(usize, usize) -> f64,
) -> Option<Vec<Option<usize>>> {
    let n = problem.classes.len();
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); n];
    for (c, forms) in problem.classes.iter().enumerate() {
        for &read in forms.iter().flat_map(|f| &f.reads) {
            readers[read].push(c);
        }
    }
    for list in &mut readers {
        list.sort_unstable();
        list.dedup();
    }
    let mut made: Vec<Option<Made>> = vec![None; n];
    // What is read comes first, so that most classes are settled in one visit.
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by_key(|&c| (problem.component[c], c));
    let mut queue: VecDeque<usize> = order.iter().copied().collect();
    let mut is_queued = vec![true; n];
    while let Some(c) = queue.pop_front() {
        is_queued[c] = false;
        let mut best = made[c].take();
        let mut is_better = false;
        for form in 0..problem.classes[c].len() {
            if let Some(found) = make(problem, &cost, &made, c, form)
                && (best.as_ref()).is_none_or(|b| found.cost < b.cost * (1.0 - 1e-12))
            {
                best = Some(found);
                is_better = true;
            }
        }
        made[c] = best;
        if is_better {
            for &reader in &readers[c] {
                if !std::mem::replace(&mut is_queued[reader], true) {
                    queue.push_back(reader);
                }
            }
        }
    }
    let preferred: Vec<Option<usize>> = (made.iter().enumerate())
        .map(|(c, m)| m.as_ref().map(|m| m.forms[&c]))
        .collect();
    assemble(problem, &order, &preferred)
}

/// The set that makes `class` by `form`.
fn make(
    problem: &Reduced,
    cost: impl Fn(usize, usize) -> f64,
    made: &[Option<Made>],
    class: usize,
    form: usize,
) -> Option<Made> {
    let mut forms = BTreeMap::from([(class, form)]);
    for &read in &problem.classes[class][form].reads {
        let part = made[read].as_ref()?;
        if part.forms.contains_key(&class) {
            return None;
        }
        for (&c, &f) in &part.forms {
            forms.entry(c).or_insert(f);
        }
    }
    let cost = forms.iter().map(|(&c, &f)| cost(c, f)).sum();
    Some(Made { cost, forms })
}

/// A choice of the forms by which the classes were last made. Sets that were
/// made at different times may disagree, so it is built up from the leaves once
/// more, and another form is taken where the preferred ones run in a circle.
fn assemble(
    problem: &Reduced,
    order: &[usize],
    preferred: &[Option<usize>],
) -> Option<Vec<Option<usize>>> {
    let mut choice = vec![None; problem.classes.len()];
    let ready = |choice: &[Option<usize>], c: usize, form: usize| {
        let mut reads = problem.classes[c][form].reads.iter();
        reads.all(|&r| choice[r].is_some())
    };
    loop {
        let mut grows = false;
        for &c in order {
            if let (None, Some(form)) = (choice[c], preferred[c])
                && ready(&choice, c, form)
            {
                choice[c] = Some(form);
                grows = true;
            }
        }
        if grows {
            continue;
        }
        let open = order.iter().filter(|&&c| choice[c].is_none());
        let other = open
            .flat_map(|&c| (0..problem.classes[c].len()).map(move |form| (c, form)))
            .find(|&(c, form)| ready(&choice, c, form));
        match other {
            Some((c, form)) => choice[c] = Some(form),
            None => break,
        }
    }
    (problem.roots.iter().all(|&r| choice[r].is_some())).then_some(choice)
}
