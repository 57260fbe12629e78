//! The failure budget, smaller than `./test --budget`.

use phalanx_tests::budget::{Scenario, Size, cells};

fn keeps(scenario: Scenario) {
    if !scenario.possible() {
        return;
    }
    for (mechanism, kind) in cells() {
        let row = scenario.run(mechanism, kind, Size::SMALL);
        assert!(row.broken.is_empty(), "{row}");
    }
}

macro_rules! keeps {
    ($($name:ident: $scenario:ident;)+) => {
        $(#[test]
        fn $name() {
            keeps(Scenario::$scenario);
        })+
    };
}

keeps! {
    workers_killed_one_by_one: KilledOneByOne;
    workers_killed_at_once: KilledAtOnce;
    workers_killed_by_name: KilledByName;
    a_worker_that_hangs: Hung;
    a_slot_that_crashes_for_ever: CrashLoop;
    reloads: Reload;
    a_stop: Stopped;
    a_primary_that_is_killed: PrimaryKilled;
}
