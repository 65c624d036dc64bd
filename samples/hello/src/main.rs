//! A small static web server that names its pod.

fn main() {}
