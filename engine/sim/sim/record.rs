//! A run as a script: seed, profile, and all that came from outside. It is replayed without drawing clients and faults, so that it
//! keeps its meaning when those are drawn differently (S20).

use std::cell::{Cell, RefCell};
use std::panic::AssertUnwindSafe;
use std::sync::Once;

use serde::{Deserialize, Serialize};

use super::act::Step;
use super::draws::Draws;
use super::profile::Profile;
use super::world::{Event, World};
use super::{drawing, live, Summary};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Script {
    /// What it was, in one line.
    pub what: String,
    /// The known bug that has to be on for it to fail; none for a fault that was real.
    #[serde(default)]
    pub bug: Option<String>,
    pub seed: u64,
    pub profile: Profile,
    pub steps: Vec<Step>,
}

/// How a run ended that broke a promise.
#[derive(Clone, Debug)]
pub struct Failure {
    pub message: String,
    pub script: Script,
}

impl Failure {
    /// The promise that was broken, without the numbers of this run.
    pub fn kind(message: &str) -> String {
        let text = message.split("VIOLATION: ").last().unwrap_or(message);
        let words = text.split(|c: char| !c.is_alphabetic()).filter(|word| word.len() > 2);
        words.take(6).collect::<Vec<_>>().join(" ")
    }
}

thread_local! {
    static SILENT: Cell<bool> = const { Cell::new(false) };
    static LAST: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs this; the text of the panic it ends with, which nobody prints.
fn quietly<T>(body: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if SILENT.get() {
                LAST.set(info.to_string());
            } else {
                before(info);
            }
        }));
    });
    let was = SILENT.replace(true);
    let result = std::panic::catch_unwind(AssertUnwindSafe(body));
    SILENT.set(was);
    result.map_err(|_| LAST.take())
}

fn watched(seed: u64, world: &mut World) -> Result<Summary, Box<Failure>> {
    let profile = world.profile.clone();
    quietly(|| live(world)).map_err(|message| {
        let steps = world.steps.clone();
        let what = Failure::kind(&message);
        Box::new(Failure { message, script: Script { what, bug: None, seed, profile, steps } })
    })
}

/// One run of a seed.
pub fn try_seed(seed: u64, change: impl FnOnce(&mut Profile)) -> Result<Summary, Box<Failure>> {
    let mut draws = Draws::new(seed);
    let mut profile = Profile::drawn(&mut draws);
    change(&mut profile);
    let mut world = drawing(seed, profile, draws, false);
    watched(seed, &mut world)
}

impl Script {
    fn world(&self, told: bool) -> World {
        let mut world = World::new(self.seed, self.profile.clone(), Draws::new(self.seed), told);
        for step in &self.steps {
            world.schedule(step.at, Event::Act(Box::new(step.act.clone())));
        }
        world
    }

    /// One run of exactly this; panics when a promise is broken.
    pub fn run(&self, told: bool) -> Summary {
        live(&mut self.world(told))
    }

    pub fn try_run(&self) -> Result<Summary, Box<Failure>> {
        watched(self.seed, &mut self.world(false))
    }
}

/// The scripts under `sim/kept`.
pub fn kept() -> Vec<Script> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("sim/kept");
    let mut paths: Vec<_> = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|f| f.path()).collect();
    paths.sort();
    let json = paths.iter().filter(|path| path.extension().is_some_and(|e| e == "json"));
    let read = |path: &std::path::PathBuf| {
        let text = std::fs::read_to_string(path).expect("a kept script can be read");
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    };
    json.map(read).collect()
}
