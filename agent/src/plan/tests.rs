//! Random histories through the plan into maps in memory, looked at after every single write, also by readers that are slow.

mod answers;
mod concerned;
mod crash;
mod epochs;
mod faults;
mod handed;
mod moved;
mod nested;
mod policy;
mod readers;
mod scene;
mod services;
