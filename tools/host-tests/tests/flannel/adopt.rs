//! `overlay adopt-flannel`: a host of flannel's is moved in place, under traffic, and back.
mod live;
mod moved;
mod refused;
mod scene;
mod undone;
