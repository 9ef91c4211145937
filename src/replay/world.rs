//! The world of a replay: a guest, its blocks, a planner, and a link, on one virtual clock.

use std::sync::Arc;
use std::time::Duration;

use super::agenda::{Agenda, News};
use super::calibration::{Answer, Questions, Record};
use super::downlink::Downlink;
use super::sight::Sight;
use super::states::States;
use super::{Figures, LinkModel, Step};
use crate::block::Geometry;
use crate::config::Config;
use crate::gate::Op;
use crate::packs::Index;
use crate::planner::{Action, Blocks, Cargo, Class, Event, Outcome, Planner, RequestId};
use crate::predictor::Foresight;
use crate::stats::CALM_RISK;
use crate::time::Moment;

/// When the guest starts: as on a real clock, some time after zero.
const START: Moment = Moment(1_000_000_000);
/// Seed of the planner's back-off, which a link without failures never uses.
const SEED: u64 = 1;

/// What is replayed.
#[derive(Debug)]
pub struct Setup<'a> {
    /// The guest.
    pub steps: &'a [Step],
    /// Of the image.
    pub geometry: Geometry,
    /// The link.
    pub link: LinkModel,
    /// The planner's options.
    pub config: Config,
    /// What follows the guest.
    pub foresight: Option<Box<dyn Foresight>>,
    /// What lies packed at the origin. The bytes of an image with packs are checked, so hashes travel too.
    pub packs: Option<Arc<Index>>,
}

/// Who looks on, which changes no figure.
#[derive(Default)]
pub struct Observer<'a> {
    /// Is told what happens as it happens, and when, counted from the guest's start.
    pub witness: Option<&'a mut dyn FnMut(Duration, Sight)>,
    /// What is asked about the future on the way.
    pub questions: Option<&'a Questions>,
}

struct World<'a> {
    steps: &'a [Step],
    geometry: Geometry,
    states: States,
    planner: Planner,
    downlink: Downlink,
    agenda: Agenda,
    now: Moment,
    /// What the planner wants and was not done yet.
    actions: Vec<Action>,
    /// Since when the guest has been waiting.
    waiting: Option<Moment>,
    /// The earliest wake-up on the agenda.
    wake: Option<Moment>,
    figures: Figures,
    /// Who looks on.
    observer: Observer<'a>,
    /// What was answered.
    record: Record,
}

/// Replays `setup` to the guest's last step.
pub fn run(setup: Setup<'_>) -> Figures {
    watch(setup, Observer::default()).0
}

/// The same before an observer, with what its questions were answered.
pub fn watch<'a>(setup: Setup<'a>, observer: Observer<'a>) -> (Figures, Vec<Answer>) {
    let Setup { steps, geometry, link, config, foresight, packs } = setup;
    let mut planner = Planner::new(geometry, &config, SEED);
    planner.set_foresight(foresight, 0);
    planner.set_packs(packs.clone());
    let mut world = World {
        steps,
        geometry,
        states: States::new(geometry),
        planner,
        downlink: Downlink::new(link, geometry, packs),
        agenda: Agenda::default(),
        now: START,
        actions: Vec::new(),
        waiting: None,
        wake: None,
        figures: Figures::default(),
        observer,
        record: Record::default(),
    };
    world.think();
    world.plan();
    if world.observer.questions.is_some() {
        world.agenda.add(START, News::Question);
    }
    while world.figures.steps < steps.len()
        && let Some((at, news)) = world.agenda.next()
    {
        world.now = at;
        world.happen(news);
    }
    world.figures.total = world.now.since(START);
    (world.figures, world.record.judge(START, world.now))
}

impl World<'_> {
    fn happen(&mut self, news: News) {
        match news {
            News::Guest => self.step(),
            News::Asked(id, cargo, class) => {
                // Nothing that the planner would see.
                self.figures.wire_bytes += self.downlink.answer(self.now, id, cargo, class, &mut self.agenda);
                return;
            }
            News::Received(id, bytes) => self.tell(Event::Received(id, bytes)),
            News::Arrived(id, range, class) => {
                let used = self.states.arrive(range, class == Class::Fill);
                let bytes = self.geometry.length(range);
                match class {
                    Class::Fill => self.figures.fill_bytes += bytes,
                    _ => self.figures.bytes += bytes,
                }
                self.figures.used_bytes += used;
                self.show(Sight::Arrived { range, class });
                self.tell(Event::Arrived(id, range));
            }
            News::Ended(id) => {
                self.downlink.ended();
                self.tell(Event::Finished(id, Outcome::Done));
            }
            News::Wake => self.wake = None,
            News::Question => return self.answer(),
        }
        self.plan();
    }

    fn show(&mut self, sight: Sight) {
        if let Some(witness) = &mut self.observer.witness {
            witness(self.now.since(START), sight);
        }
    }

    fn tell(&mut self, event: Event) {
        self.planner.on(event, self.now, &self.states, &mut self.actions);
    }

    fn plan(&mut self) {
        self.planner.plan(self.now, &self.states, &mut self.actions);
        for action in std::mem::take(&mut self.actions) {
            match action {
                Action::Fetch(id, range, class) => {
                    self.figures.requests += 1;
                    self.downlink.ask(self.now, id, Cargo::Range(range), class, &mut self.agenda);
                }
                Action::FetchFrames(id, frames, class) => {
                    self.figures.requests += 1;
                    self.downlink.ask(self.now, id, Cargo::Frames(frames), class, &mut self.agenda);
                }
                // The guest is serial, so it can be no other request.
                Action::Complete(..) => {
                    if let Some(since) = self.waiting.take() {
                        self.figures.stall(self.now.since(since));
                        self.show(Sight::Served);
                        self.record.waited(since, self.now);
                        self.end_step();
                    }
                }
            }
        }
        if let Some(at) = self.planner.deadline()
            && self.wake.is_none_or(|wake| at < wake)
        {
            self.wake = Some(at);
            self.agenda.add(at.max(self.now), News::Wake);
        }
    }

    /// The guest begins its next step.
    fn step(&mut self) {
        let Step { op, offset, length, .. } = self.steps[self.figures.steps];
        if op == Op::Flush {
            return self.end_step();
        }
        let request = Planner::request(self.geometry, op, offset, length, self.now);
        let needs = request.needs();
        self.figures.used_bytes += needs.map(|range| self.states.need(range)).iter().sum::<u64>();
        let first_time = self.states.touch(request.touched);
        let missed = needs.iter().any(|&range| self.states.first_missing(range).is_some());
        self.show(Sight::Step { number: self.figures.steps, missed });
        if missed {
            self.waiting = Some(self.now);
            self.tell(Event::Needed(RequestId(self.figures.steps as u64), request));
            return;
        }
        if first_time {
            self.tell(Event::Touched(request));
        }
        self.end_step();
    }

    /// The guest has what it wants, and thinks about its next step.
    fn end_step(&mut self) {
        let step = &self.steps[self.figures.steps];
        if step.op == Op::Write || step.op == Op::Discard {
            self.states.written(self.geometry.touched(step.offset, step.length));
        }
        self.figures.steps += 1;
        self.think();
    }

    /// Asks the planner what an image would be asked.
    fn answer(&mut self) {
        let Some(questions) = self.observer.questions else { return };
        let outlook = self.planner.outlook(self.now);
        let missing = self.states.missing_bytes();
        for &horizon in &questions.horizons {
            let said = outlook.forecast(horizon, CALM_RISK, missing, &self.states);
            self.record.said(self.now, horizon, said);
        }
        self.agenda.add(self.now + questions.every, News::Question);
    }

    fn think(&mut self) {
        if let Some(next) = self.steps.get(self.figures.steps) {
            self.agenda.add(self.now + next.think, News::Guest);
        }
    }
}
