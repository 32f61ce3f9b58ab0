//! Extraction against all choices of small problems, and other people's instances.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use sstep_planner::rewrite::extract::{ClassIx, Extraction, Form, extract};

/// Problems of a few classes that read one another in any direction.
fn problems() -> impl Strategy<Value = Extraction> {
    const CLASSES: u32 = 6;
    let form = (0u32..20, prop::collection::vec(0..CLASSES, 0..3)).prop_map(|(cost, reads)| Form {
        cost: f64::from(cost) / 8.0,
        reads: reads.into_iter().map(ClassIx).collect(),
    });
    let class = prop::collection::vec(form, 1..4);
    let classes = prop::collection::vec(class, CLASSES as usize);
    let roots = prop::collection::vec((0..CLASSES).prop_map(ClassIx), 1..3);
    (classes, roots).prop_map(|(classes, roots)| Extraction { classes, roots })
}

/// Cost of a choice, `None` if a root reads itself under it.
fn cost(problem: &Extraction, choice: &[usize]) -> Option<f64> {
    fn visit(
        problem: &Extraction,
        choice: &[usize],
        class: usize,
        state: &mut BTreeMap<usize, bool>,
    ) -> Option<f64> {
        match state.get(&class) {
            Some(true) => return Some(0.0),
            Some(false) => return None,
            None => {}
        }
        state.insert(class, false);
        let form = &problem.classes[class][choice[class]];
        let mut sum = form.cost;
        for read in &form.reads {
            sum += visit(problem, choice, read.ix(), state)?;
        }
        state.insert(class, true);
        Some(sum)
    }
    let mut state = BTreeMap::new();
    let costs = (problem.roots.iter()).map(|r| visit(problem, choice, r.ix(), &mut state));
    costs.sum()
}

/// Least cost over all choices.
fn least(problem: &Extraction) -> Option<f64> {
    let mut choice = vec![0; problem.classes.len()];
    let mut best: Option<f64> = None;
    loop {
        if let Some(cost) = cost(problem, &choice) {
            best = Some(best.map_or(cost, |b| b.min(cost)));
        }
        let mut at = 0;
        loop {
            if at == choice.len() {
                return best;
            }
            choice[at] += 1;
            if choice[at] < problem.classes[at].len() {
                break;
            }
            choice[at] = 0;
            at += 1;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn extraction_is_the_least_of_all_choices(problem in problems()) {
        let found = extract(&problem).expect("the solver runs");
        let least = least(&problem);
        prop_assert_eq!(found.is_some(), least.is_some());
        if let (Some(found), Some(least)) = (found, least) {
            prop_assert!((found.cost - least).abs() < 1e-9, "{} but {least}", found.cost);
            prop_assert!(found.bound <= found.cost);
            prop_assert!(found.cost - found.bound < 1e-6, "{found:?}");
            let choice: Vec<usize> = found.choice.iter().map(|f| f.unwrap_or(0)).collect();
            let again = cost(&problem, &choice).expect("the choice has no cycle");
            prop_assert!((again - found.cost).abs() < 1e-9);
        }
    }
}

/// A program of the TENSAT benchmarks.
fn read(path: &Path) -> Extraction {
    let text = std::fs::read_to_string(path).expect("the instance can be read");
    let json: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
    let nodes = json["nodes"].as_object().expect("nodes");
    let mut place: BTreeMap<&str, ClassIx> = BTreeMap::new();
    for node in nodes.values() {
        let next = ClassIx(place.len() as u32);
        place
            .entry(node["eclass"].as_str().expect("a class"))
            .or_insert(next);
    }
    let class_of = |id: &str| place[nodes[id]["eclass"].as_str().expect("a class")];
    let mut classes = vec![Vec::new(); place.len()];
    for (id, node) in nodes {
        let children = node["children"].as_array().expect("children").iter();
        classes[class_of(id).ix()].push(Form {
            cost: node["cost"].as_f64().expect("a cost"),
            reads: children
                .map(|c| class_of(c.as_str().expect("an id")))
                .collect(),
        });
    }
    let roots = json["root_eclasses"].as_array().expect("roots").iter();
    let roots = roots.map(|r| place[r.as_str().expect("a class")]).collect();
    Extraction { classes, roots }
}

#[test]
fn instances_of_others_are_solved_to_their_optimum() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/planning/tensat");
    if !folder.is_dir() {
        eprintln!("skipped: there is no {}", folder.display());
        return;
    }
    for (name, optimum) in [("vgg", 4.866774947848), ("resnet50", 4.415993008020)] {
        let problem = read(&folder.join(format!("{name}_acyclic.json")));
        let found = extract(&problem)
            .expect("the solver runs")
            .expect("a choice");
        assert!(
            (found.cost - optimum).abs() < 1e-9,
            "{name}: {} but {optimum}",
            found.cost
        );
        assert!(
            found.cost - found.bound < 1e-6,
            "{name}: bound {}",
            found.bound
        );
    }
}
