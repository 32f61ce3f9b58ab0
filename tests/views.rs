//! The views of a plan say what the plan says: page, graph and trace are
//! well-formed, complete in themselves, and carry the plan's own numbers.

mod common;

use common::Net;
use sstep::{CapPoint, Comparison, StrategyLine};
use sstep_planner::{Budget, ItemRole, Plan, Strategy};

/// A net that is cut, stores maps, and moves some to the host.
const NET: &str = "
x = input [1, 3, 256, 256]
w1 = param [8, 3, 3, 3]
g1 = param [8]
b1 = param [8]
w2 = param [8, 8, 3, 3]
fc = param [3, 8]
c1 = conv(x, w1) pad=1
m1 = moments(c1) groups=4
n1 = normalise(c1, m1, g1, b1) groups=4 eps=1e-5
r1 = relu(n1)
c2 = conv(r1, w2) pad=1
r2 = relu(c2)
s = sum_map(r2)
h = scale(s) factor=1.5e-5
y = linear(h, fc)
labels = input [1, 1]
l = cross_entropy(y, labels)
";

fn planned() -> Plan {
    let budget = Budget {
        device_bytes: 3 << 20,
        host_bytes: 1 << 30,
        disk_bytes: 0,
    };
    let plan = Net::parse("f32", NET).plan(budget, Strategy::Optimal);
    plan.unwrap_or_else(|e| panic!("{e}"))
}

fn compared(plan: &Plan) -> Comparison {
    let line = |name: &str, outcome| StrategyLine {
        name: name.to_owned(),
        outcome,
    };
    let caps = [1u64, 2, 4].map(|k| CapPoint {
        device_bytes: k * plan.budget.device_bytes,
        secs: Some(plan.predicted.secs / k as f64),
    });
    Comparison {
        strategies: vec![
            line("optimal", Ok(plan.predicted)),
            line("store-all", Err("needs <more> & more".to_owned())),
        ],
        caps: caps.to_vec(),
    }
}

#[test]
fn the_page_is_well_formed_and_shows_the_plan() {
    let plan = planned();
    let page = plan.html("a & b < \"c\"", &compared(&plan));
    let options = roxmltree::ParsingOptions {
        allow_dtd: true,
        ..Default::default()
    };
    let tree = roxmltree::Document::parse_with_options(&page, options).expect("well-formed");
    let nodes = || tree.descendants().filter(|n| n.is_element());
    let title = nodes().find(|n| n.has_tag_name(("http://www.w3.org/1999/xhtml", "h1")));
    assert_eq!(title.and_then(|n| n.text()), Some("a & b < \"c\""));

    // Nothing is fetched: the only address is the name of the language.
    let addresses: Vec<&str> = page
        .match_indices("://")
        .map(|(at, _)| &page[at - 5..at])
        .collect();
    assert_eq!(addresses, ["\"http"], "one address");
    for attribute in ["src", "href", "action"] {
        assert!(
            nodes().all(|n| n.attribute(attribute).is_none()),
            "{attribute}"
        );
    }
    assert!(!page.contains("url(") && !page.contains("@import"));

    // Every buffer is drawn once, with its own size and offset.
    let number = |n: &roxmltree::Node, name| n.attribute(name).and_then(|v| v.parse::<u64>().ok());
    let is = |n: &roxmltree::Node, class: &str| {
        let classes = n.attribute("class").unwrap_or_default();
        classes.split(' ').next() == Some(class)
    };
    let mut drawn: Vec<(Option<u64>, Option<u64>)> = nodes()
        .filter(|n| is(n, "buffer"))
        .map(|n| (number(&n, "data-offset"), number(&n, "data-bytes")))
        .collect();
    drawn.sort_unstable();
    let mut buffers: Vec<(Option<u64>, Option<u64>)> = (plan.buffers.iter())
        .map(|b| (Some(b.offset), Some(b.bytes)))
        .collect();
    buffers.sort_unstable();
    assert_eq!(drawn, buffers);

    // The bars add up to the traffic.
    let sum = |what: &str| -> u64 {
        let bars = nodes().filter(|n| is(n, "move") && n.attribute("data-what") == Some(what));
        bars.filter_map(|n| number(&n, "data-bytes")).sum()
    };
    assert!(plan.predicted.d2h_bytes > 0, "{}", plan.explain());
    assert_eq!(sum("from the host"), plan.predicted.h2d_bytes);
    assert_eq!(sum("to the host"), plan.predicted.d2h_bytes);
    assert_eq!(sum("from images"), plan.predicted.source_bytes);
    assert_eq!(nodes().filter(|n| is(n, "point")).count(), 3);
    assert!(page.contains("needs &lt;more&gt; &amp; more"));
}

#[test]
fn the_picture_follows_the_plan() {
    let plan = planned();
    let picture = plan.picture();
    let end = picture.stage_secs.last().map_or(0.0, |s| s.1);
    assert!((end - plan.predicted.secs).abs() <= 1e-9 * end);
    let most = picture.host_bytes.iter().max().copied();
    assert_eq!(most, Some(plan.predicted.host_peak_bytes));
    for (stage, &live) in plan.stages.iter().zip(&picture.live_bytes) {
        assert!(live <= stage.cost.high_water_bytes);
    }
    let supplies = (plan.stages.iter().flat_map(|s| &s.items))
        .filter(|i| matches!(i.role, ItemRole::Supply(_)))
        .count();
    assert_eq!(picture.links.len(), supplies);
    for link in &picture.links {
        assert_eq!(link.from.is_none(), link.place == "source", "{link:?}");
        assert!(link.from.is_none_or(|from| from < link.to), "{link:?}");
    }
}

#[test]
fn the_graph_has_every_stage_and_every_link() {
    let plan = planned();
    let graph = plan.dot();
    for stage in 0..plan.stages.len() {
        assert_eq!(graph.matches(&format!("\n  s{stage} [label=")).count(), 1);
    }
    assert_eq!(graph.matches(" -> ").count(), plan.picture().links.len());
    assert_eq!(graph.matches('{').count(), graph.matches('}').count());
}

/// Where copies run beside kernels, the channels of a stage stand side by side.
#[test]
fn channels_that_overlap_stand_side_by_side() {
    let budget = Budget {
        device_bytes: 3 << 20,
        host_bytes: 1 << 30,
        disk_bytes: 0,
    };
    let net = Net::parse("f32", NET).with_overlap();
    let plan = net.plan(budget, Strategy::OffloadAll).expect("a plan");
    let trace = plan.trace();
    let events = trace["traceEvents"].as_array().expect("events");
    let number = |e: &serde_json::Value, name: &str| e[name].as_f64().expect("a number");
    let mut beside = 0;
    let stages = || (events.iter()).filter(|e| e["ph"] == "X" && e["tid"] == 1);
    for (event, stage) in stages().zip(&plan.stages) {
        let (from, dur) = (number(event, "ts"), number(event, "dur"));
        let slices = || events.iter().filter(|e| e["ph"] == "X" && e["tid"] != 1);
        let within = |e: &&serde_json::Value| {
            let middle = number(e, "ts") + number(e, "dur") / 2.0;
            middle > from && middle < from + dur
        };
        let channels: f64 = slices().filter(within).map(|e| number(e, "dur")).sum();
        let c = &stage.cost;
        let in_turn_secs = c.compute_secs + c.h2d_secs + c.d2h_secs;
        assert!((channels / 1e6 - in_turn_secs).abs() <= 1e-6 * in_turn_secs);
        beside += u32::from(stage.overlaps() && channels > dur);
    }
    assert!(beside > 0, "{}", plan.explain());
    let page = plan.html("ahead", &compared(&plan));
    assert!(page.contains("class=\"staging\"") && page.contains(" compute, "));
    assert!(plan.dot().contains("bound by"));
}

#[test]
fn the_trace_spans_the_predicted_step() {
    let plan = planned();
    let trace = plan.trace();
    let events = trace["traceEvents"].as_array().expect("events");
    let stages: Vec<_> = (events.iter())
        .filter(|e| e["ph"] == "X" && e["tid"] == 1)
        .collect();
    assert_eq!(stages.len(), plan.stages.len());
    let micros: f64 = stages.iter().filter_map(|e| e["dur"].as_f64()).sum();
    assert!((micros / 1e6 - plan.predicted.secs).abs() <= 1e-9 * plan.predicted.secs);
    let out: u64 = (events.iter())
        .filter_map(|e| e["args"]["to_host"].as_u64())
        .sum();
    assert_eq!(out, plan.predicted.d2h_bytes);
}
