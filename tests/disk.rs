//! The disk as the third tier: plans that need one, the bits that come back from
//! it, and what is left in its folder.

mod common;

use std::path::{Path, PathBuf};

use common::nets::normed;
use common::{AMPLE, HOW, Net, execute, execute_as_promised, leaves, oracle, ready, worst};
use sstep_executor::ExecError;
use sstep_planner::{
    Budget, DiskIx, DiskTensor, Home, HostIx, ItemRole, Plan, PlanError, Strategy, verify,
};

fn net() -> Net {
    Net::parse("f32", &normed([48, 40], 8, 2))
}

/// Bytes of the largest map that is stored.
const MAP_BYTES: u64 = 8 * 48 * 40 * 4;

/// A plan with everything that was on the host on disk instead, each tensor at a
/// place of its own.
fn moved_to_disk(plan: &Plan) -> Plan {
    let mut moved = plan.clone();
    let mut offset = 0;
    for tensor in std::mem::take(&mut moved.host) {
        moved.disk.push(DiskTensor {
            node: tensor.node,
            bytes: tensor.bytes,
            offset,
            live: tensor.live,
        });
        offset += tensor.bytes;
    }
    moved.budget.host_bytes = 0;
    moved.budget.disk_bytes = offset;
    let swap = |home: &mut Home| {
        if let Home::Host(HostIx(i)) = *home {
            *home = Home::Disk(DiskIx(i));
        }
    };
    for item in moved.stages.iter_mut().flat_map(|s| &mut s.items) {
        if let ItemRole::Supply(home) = &mut item.role {
            swap(home);
        }
        item.stores.iter_mut().for_each(swap);
    }
    moved
        .map_outputs
        .iter_mut()
        .for_each(|(_, home)| swap(home));
    moved
}

#[test]
fn what_comes_from_disk_has_the_bits_that_come_from_the_host() {
    let net = net().and("c2");
    let values = leaves::<f32>(&net.tape, 5);
    let mut compared = 0;
    for strategy in Strategy::ALL.into_iter().filter(|s| s.may_offload()) {
        let beyond = Budget {
            host_bytes: AMPLE,
            ..Budget::default()
        };
        let least = net.least_in(beyond, strategy).expect("a plan");
        let budget = Budget {
            device_bytes: least,
            ..beyond
        };
        let on_host = net.plan(budget, strategy).expect("it fits");
        let on_disk = moved_to_disk(&on_host);
        verify(&on_disk).expect("the same plan, elsewhere");
        compared += on_disk.disk.len();
        let (want, from_host) = execute(on_host, &values);
        let (got, from_disk) = execute(on_disk, &values);
        assert_eq!(from_disk.disk_read_bytes, from_host.h2d_bytes);
        assert_eq!(from_disk.disk_write_bytes, from_host.d2h_bytes);
        assert_eq!((from_disk.h2d_bytes, from_disk.host_peak_bytes), (0, 0));
        for (name, tensor) in &want {
            let bits = |data: &[f32]| data.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            let same = bits(&got[name].data) == bits(&tensor.data);
            assert!(same, "{strategy}: {name} differs");
        }
    }
    assert!(compared > 10, "only {compared} maps went to disk");
}

#[test]
fn a_disk_makes_plans_possible_that_have_none_without() {
    let net = net();
    let values = leaves::<f32>(&net.tape, 6);
    // Room for one map on the host; whoever must offload all needs more.
    let host_only = Budget {
        device_bytes: 4 << 20,
        host_bytes: MAP_BYTES,
        disk_bytes: 0,
    };
    let error = net.plan(host_only, Strategy::OffloadAll).err();
    assert!(matches!(error, Some(PlanError::HostTooSmall { .. })));
    let too_little = Budget {
        disk_bytes: MAP_BYTES,
        ..host_only
    };
    let error = net
        .plan(too_little, Strategy::OffloadAll)
        .expect_err("none");
    let text = error.to_string();
    assert!(
        text.contains("of host memory and 60.0 KiB of disk"),
        "{text}"
    );
    let budget = Budget {
        disk_bytes: 16 * MAP_BYTES,
        ..host_only
    };
    let plan = net.plan(budget, Strategy::OffloadAll).expect("a plan");
    // The host is used for what it has room for.
    assert!(!plan.host.is_empty() && !plan.disk.is_empty());
    let words = plan.explain();
    for word in ["disk      ", "from disk", "(disk)", "(host)"] {
        assert!(words.contains(word), "no `{word}` in\n{words}");
    }
    let got = execute_as_promised(plan, &values);
    assert!(worst(&got, &oracle(&net, &values)).0 <= 1e-5);
}

#[test]
fn the_best_plan_is_not_slower_with_a_disk_and_uses_it_where_it_pays() {
    let net = net();
    let host_only = |device_bytes| Budget {
        device_bytes,
        host_bytes: MAP_BYTES / 2,
        disk_bytes: 0,
    };
    let least = net
        .least_in(host_only(1), Strategy::Optimal)
        .expect("a plan");
    let mut used = false;
    for tenths in [10, 14] {
        let without = host_only(least * tenths / 10);
        let with = Budget {
            disk_bytes: 64 * MAP_BYTES,
            ..without
        };
        let [without, with] =
            [without, with].map(|b| net.plan(b, Strategy::Optimal).expect("a plan"));
        used |= !with.disk.is_empty();
        assert!(with.predicted.disk_peak_bytes <= with.budget.disk_bytes);
        let slack = 1.0 + with.gap.max(1e-9);
        assert!(
            with.predicted.secs <= without.predicted.secs * slack,
            "{}\n{}",
            with.summary(),
            without.summary()
        );
    }
    // A disk that keeps more than the smallest device without it needs.
    let with = Budget {
        device_bytes: 1,
        host_bytes: 0,
        disk_bytes: 64 * MAP_BYTES,
    };
    used |= net
        .least_in(with, Strategy::Optimal)
        .is_some_and(|l| l < least);
    assert!(used, "nothing was ever gained by the disk");
}

/// A folder of its own, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        let dir = std::env::temp_dir().join(format!("sstep-disk-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a folder");
        Folder(dir)
    }

    fn is_empty(&self) -> bool {
        std::fs::read_dir(&self.0)
            .expect("a folder")
            .next()
            .is_none()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_spill_file_has_no_name_and_its_folder_must_exist() {
    let net = net();
    let values = leaves::<f32>(&net.tape, 7);
    let budget = Budget {
        device_bytes: 4 << 20,
        host_bytes: 0,
        disk_bytes: 16 * MAP_BYTES,
    };
    let plan = net.plan(budget, Strategy::OffloadAll).expect("a plan");
    let folder = Folder::new();
    let (executor, feeds) = ready(plan.clone(), &values);
    let mut executor = executor.spilling_to(&folder.0).expect("a spill file");
    assert!(folder.is_empty());
    let mut first = None;
    for _ in 0..2 {
        let step = executor.step(&feeds, &HOW, &mut |_| assert!(folder.is_empty()));
        let outputs = step.expect("a step").outputs;
        // What the step before left in the file is of no matter.
        assert_eq!(first.get_or_insert_with(|| outputs.clone()), &outputs);
    }
    drop(executor);
    assert!(folder.is_empty());
    let (executor, _) = ready(plan, &values);
    let refused = executor.spilling_to(Path::new("/no/such/folder")).err();
    assert!(matches!(refused, Some(ExecError::SpillFolder { .. })));
}
