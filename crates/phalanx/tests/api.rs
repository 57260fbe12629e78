//! What the types of the library promise to the programs that hold them.
#![cfg(all(target_os = "linux", not(phalanx_standalone)))]

use std::error::Error;
use std::fmt::Debug;
use std::future::Future;

fn shared<T: Send + Sync + Debug + 'static>() {}
fn handle<T: Clone + Send + Sync + Debug + 'static>() {}
fn value<T: Clone + Eq + Send + Sync + Debug + 'static>() {}
fn error<T: Error + Send + Sync + 'static>() {}
fn future<T: Future + Send + Debug + Unpin + 'static>() {}
fn stream<T: futures_core::Stream + Send + Debug + Unpin + 'static>() {}

#[test]
fn handles_go_anywhere() {
    handle::<phalanx::Primary>();
    handle::<phalanx::WorkerRef>();
    handle::<phalanx::Worker>();
    handle::<phalanx::Draining>();
    handle::<phalanx::Event>();
    handle::<phalanx::Attached>();
    handle::<phalanx::Output>();
    handle::<phalanx::Status>();
    handle::<phalanx::net::ListenOptions>();
    shared::<phalanx::Handle>();
    shared::<phalanx::Messages>();
    shared::<phalanx::net::TcpListener>();
    shared::<phalanx::net::UnixListener>();
    shared::<phalanx::net::UdpSocket>();
    shared::<phalanx::net::blocking::TcpListener>();
    shared::<phalanx::testing::Running>();
    // It holds functions of the user's, which need not be shared.
    fn sent<T: Send + Debug>() {}
    sent::<phalanx::Builder>();
}

#[test]
fn what_takes_time_is_a_future_or_a_stream() {
    future::<phalanx::Draining>();
    future::<phalanx::Progress>();
    future::<phalanx::Reload>();
    stream::<phalanx::Events>();
    stream::<phalanx::net::TcpIncoming>();
    stream::<phalanx::net::UnixIncoming>();
}

#[test]
fn errors_are_errors() {
    error::<phalanx::Error>();
    error::<phalanx::ConfigError>();
    error::<phalanx::InitError>();
    error::<phalanx::ReloadError>();
    error::<phalanx::SendError>();
    error::<phalanx::UnknownMechanism>();
    error::<phalanx::UnknownOnHang>();
    error::<phalanx::UnknownOrphans>();
    error::<phalanx::UnknownPolicy>();
    error::<phalanx::UnknownReady>();
    // `?` in a function that returns `phalanx::Result`.
    fn into<T: Into<phalanx::Error>>() {}
    into::<phalanx::InitError>();
    into::<phalanx::ReloadError>();
    into::<phalanx::SendError>();
}

#[test]
fn values_are_compared() {
    value::<phalanx::Cause>();
    value::<phalanx::Ended>();
    value::<phalanx::Hang>();
    value::<phalanx::Inspect>();
    value::<phalanx::Mechanism>();
    value::<phalanx::OnHang>();
    value::<phalanx::Orphans>();
    value::<phalanx::Policy>();
    value::<phalanx::Ready>();
    value::<phalanx::Restart>();
    value::<phalanx::Settings>();
    value::<phalanx::Signal>();
    value::<phalanx::Slot>();
    value::<phalanx::State>();
    value::<phalanx::WorkerId>();
}
