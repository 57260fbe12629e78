//! The phalanx program: a cluster for any service.

mod args;
mod control;
mod demo;
mod doctor;
mod env_file;
mod exit;
mod journal;
mod lives;
mod log;
mod operation;
mod run;
mod show;
mod target;
mod units;
mod verbs;
mod why;

use clap::Parser;

fn main() -> std::process::ExitCode {
    phalanx_os::signal::normalize();
    let cli = args::Cli::parse();
    let result = match cli.command {
        args::Verb::Run(run) => run::run(*run),
        args::Verb::Demo(demo) => demo::demo(demo),
        args::Verb::DemoWorker => demo::worker(),
        args::Verb::Doctor(doctor) => doctor::doctor(&doctor),
        args::Verb::Status(status) => show::status(&status),
        args::Verb::Events(events) => show::events(&events),
        args::Verb::Stop(stop) => show::stop(&stop),
        args::Verb::Ready(ready) => show::ready(&ready),
        args::Verb::Reload(reload) => verbs::reload(&reload),
        args::Verb::Restart(restart) => verbs::restart(&restart),
        args::Verb::Scale(scale) => verbs::rescale(&scale),
        args::Verb::Kill(kill) => verbs::kill(&kill),
        args::Verb::Why(why) => verbs::why(&why),
        args::Verb::Curl(curl) => verbs::curl(&curl),
    };
    log::flush();
    match result {
        Ok(code) => code.into(),
        Err(failure) => {
            eprintln!("phalanx: {failure}");
            failure.code.into()
        }
    }
}
