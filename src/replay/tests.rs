//! Replays of small guests whose figures can be worked out by hand, and of made-up sessions.

use std::sync::Arc;
use std::time::Duration;

use super::calibration::Questions;
use super::oracle::{Bound, bound};
use super::{Figures, LinkModel, Observer, Policy, Setup, Sight, guest, run, watch};
use crate::config::Config;
use crate::model::{Limits, Model, Trainer, testing as made_up};
use crate::planner::Class;
use crate::session::{Session, text};

/// One block takes 4.096 ms, and headers 0.3 ms.
const LINK: LinkModel = LinkModel { rate: 1e6, round_trip: Duration::from_millis(50) };

fn session(lines: &str) -> Session {
    text::parse("test", format!("# vmtrace 1 size=1048576 block=4096\n{lines}").as_bytes()).unwrap()
}

fn replay(session: &Session, policy: Policy, model: Option<&Arc<Model>>) -> (Figures, Bound) {
    let steps = guest(session, 1.0, Duration::from_secs(2));
    let mut config = Config { fill: false, ..Config::default() };
    let foresight = policy.foresight(&mut config, model, session);
    let geometry = session.geometry;
    let figures = run(Setup { steps: &steps, geometry, link: LINK, config, foresight, packs: None });
    assert_eq!(figures.steps, steps.len(), "{policy:?}");
    (figures, bound(&steps, geometry, LINK))
}

fn micros(us: u64) -> Duration {
    Duration::from_micros(us)
}

#[test]
fn demand_costs_the_round_trip_a_connection_and_the_bytes() {
    // The second read finds the block, the third finds a connection.
    let session = session("5000 R 0 4096\n6000 R 0 4096\n9000 R 409600 8192\n");
    let (figures, bound) = replay(&session, Policy::None, None);
    let first = 100_000 + 300 + 4096;
    let third = 50_000 + 300 + 2 * 4096;
    assert_eq!(figures.stalled, micros(first + third));
    assert_eq!(figures.total, micros(first + third + 4000));
    assert_eq!((figures.stalls, figures.long_stalls, figures.requests), (2, 1, 2));
    assert_eq!((figures.bytes, figures.used_bytes, figures.wasted_bytes()), (3 * 4096, 3 * 4096, 0));
    // Two round trips and one block, or two round trips and three blocks 4 ms later.
    let stall = micros(100_000 + 3 * 4096 - 4000);
    assert_eq!(bound, Bound { guest: micros(4000), stall, bytes: 3 * 4096 });
    assert_eq!(bound.total(), micros(100_000 + 3 * 4096));
}

#[test]
fn what_the_guest_wrote_is_never_fetched() {
    let session = session("0 W 0 8192\n1000 R 4096 4096\n2000 D 12288 4096\n3000 R 12288 4096\n4000 F 0 0\n");
    for policy in Policy::ALL {
        let (figures, bound) = replay(&session, policy, None);
        assert_eq!((figures.stalls, figures.total, bound.bytes), (0, micros(4000), 0), "{policy:?}");
    }
}

#[test]
fn the_edge_of_a_write_is_fetched_first() {
    let (figures, bound) = replay(&session("0 W 100 3900\n"), Policy::None, None);
    assert_eq!((figures.stalls, figures.bytes, figures.used_bytes, bound.bytes), (1, 4096, 4096, 4096));
}

#[test]
fn pauses_are_scaled_cut_and_freed_of_waiting() {
    let session = session("700000 R 0 4096 wait=300000\n1100000 R 0 4096\n91100000 R 0 4096\n");
    let think: Vec<_> = guest(&session, 0.5, Duration::from_secs(2)).iter().map(|step| step.think).collect();
    assert_eq!(think, [0, 50_000, 2_000_000].map(micros));
}

#[test]
fn waits_side_by_side_are_taken_out_once_as_in_training() {
    let session = session("0 R 0 4096 wait=300000\n100000 R 8192 4096 wait=300000\n500000 R 16384 4096\n");
    let mut at = Duration::ZERO;
    let steps = guest(&session, 1.0, Duration::from_secs(2)).into_iter();
    let times: Vec<_> = steps.map(|step| (at += step.think, at).1).collect();
    assert_eq!(times, [0, 0, 100_000].map(micros), "it stood still for 400 ms");
    assert_eq!(times, session.first_touches().iter().map(|touch| touch.at).collect::<Vec<_>>());
}

#[test]
fn nobody_is_faster_than_the_bound_and_foresight_helps() {
    let learnt: Vec<_> = (0..6).map(|seed| made_up::session(seed, &[seed % 3, (seed + 1) % 3])).collect();
    let mut trainer = Trainer::new(learnt[0].geometry, Limits::default());
    learnt.iter().for_each(|session| trainer.add(session).unwrap());
    let model = Arc::new(trainer.finish());
    for tasks in [[0, 1], [1, 0], [2, 1]] {
        let session = made_up::session(99, &tasks);
        let total = |policy| {
            let (figures, bound) = replay(&session, policy, Some(&model));
            assert!(figures.total >= bound.total(), "{policy:?} {tasks:?}: {figures:?} {bound:?}");
            assert!(figures.used_bytes <= bound.bytes && figures.used_bytes <= figures.bytes, "{policy:?}");
            assert_eq!(figures.total, bound.guest + figures.stalled, "the guest thinks or waits");
            figures.total
        };
        let [planner, none, readahead, _, _, oracle] = Policy::ALL.map(total);
        assert!(oracle <= planner && planner < readahead && readahead <= none, "{tasks:?}");
    }
}

#[test]
fn forecasts_are_given_on_the_way_and_change_nothing() {
    let learnt: Vec<_> = (0..4).map(|seed| made_up::session(seed, &[1, 2, 3])).collect();
    let mut trainer = Trainer::new(learnt[0].geometry, Limits::default());
    learnt.iter().for_each(|session| trainer.add(session).unwrap());
    let model = Arc::new(trainer.finish());
    let session = made_up::session(99, &[1, 2, 3]);
    let steps = guest(&session, 1.0, Duration::from_secs(2));
    let mut config = Config { fill: false, ..Config::default() };
    let foresight = Policy::Planner.foresight(&mut config, Some(&model), &session);
    let setup = Setup { steps: &steps, geometry: session.geometry, link: LINK, config, foresight, packs: None };
    let second = Duration::from_secs(1);
    let questions = Questions { every: second / 4, horizons: vec![second / 2, second] };
    let (figures, answers) = watch(setup, Observer { questions: Some(&questions), witness: None });
    assert_eq!(figures, replay(&session, Policy::Planner, Some(&model)).0);
    assert!(answers.len() > 20 && answers.iter().all(|a| a.said.foreseen && a.at + a.horizon <= figures.total));
    // Where a stall came it had been likelier than where none did: the forecast knows something.
    let mean = |stalled| {
        let risks: Vec<f64> = answers.iter().filter(|a| a.stalled == stalled).map(|a| a.said.stall_risk).collect();
        risks.iter().sum::<f64>() / risks.len() as f64
    };
    assert!(mean(true) > mean(false) + 0.2, "{} {}", mean(true), mean(false));
}

#[test]
fn the_same_replay_gives_the_same_figures() {
    let session = made_up::session(5, &[3]);
    assert_eq!(replay(&session, Policy::Readahead, None), replay(&session, Policy::Readahead, None));
}

#[test]
fn who_watches_sees_what_the_figures_sum_up_and_changes_nothing() {
    let session = made_up::session(7, &[1, 2]);
    let steps = guest(&session, 1.0, Duration::from_secs(2));
    let geometry = session.geometry;
    let setup = || Setup {
        steps: &steps,
        geometry,
        link: LINK,
        config: Config { fill: true, ..Config::default() },
        foresight: None,
        packs: None,
    };
    let mut seen = Figures::default();
    let mut waits = None;
    let mut witness = |at, sight| {
        assert!(at >= seen.total, "in order of time");
        seen.total = at;
        match sight {
            Sight::Step { number, missed } => {
                assert_eq!((number, waits), (seen.steps, None));
                waits = missed.then_some(at);
                seen.steps += 1;
            }
            Sight::Served => seen.stall(at - waits.take().expect("it waited")),
            Sight::Arrived { range, class: Class::Fill } => seen.fill_bytes += geometry.length(range),
            Sight::Arrived { range, .. } => seen.bytes += geometry.length(range),
        }
    };
    let (figures, answers) = watch(setup(), Observer { witness: Some(&mut witness), questions: None });
    assert!(answers.is_empty(), "nobody asked");
    assert_eq!(figures, run(setup()));
    assert!(figures.stalls > 0 && figures.fill_bytes > 0, "{figures:?}");
    // What else there is cannot be seen from outside.
    assert_eq!(seen, Figures { used_bytes: 0, wire_bytes: 0, requests: 0, ..figures });
}
